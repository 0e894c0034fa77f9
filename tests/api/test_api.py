"""`sslcli.train` and `Run`: the same options as the YAML, callbacks as objects, and what a run tells."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import yaml
from api_helpers import TINY, Arrays, tiny_run
from typer.testing import CliRunner

import sslcli
from sslcli import plugins
from sslcli.cli.main import app
from sslcli.contracts.callback import Callback
from sslcli.contracts.errors import UserError
from sslcli.methods.simclr import SimCLR

SHAPES = {
    **TINY,
    "backbone": {"name": "resnet18", "width": 4, "stem": "small"},
    "data": {"name": "shapes", "count": 32, "size": 16},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SHAPES))
    return path


def test_a_config_with_dotted_overrides_trains_as_it_always_did(config, tmp_path) -> None:
    run = sslcli.train(config, {"training.epochs": 1, "optimizer.lr": 0.1}, output=tmp_path / "run")
    assert (run.step, run.total_steps, run.signal) == (4, 4, None)
    assert run.directory == run.path == tmp_path / "run"
    assert (run.config["training"]["epochs"], run.config["optimizer"]["lr"]) == (1, 0.1)


def test_sections_in_python_resolve_to_what_the_yaml_resolves_to(config, tmp_path) -> None:
    stop = {"training.max_steps": 1}
    written = sslcli.from_config(config, stop, output=tmp_path / "yaml")
    typed = sslcli.train(**SHAPES, overrides=stop, output=tmp_path / "python")
    assert written.config == typed.config
    assert written.metrics[-1]["loss"] == typed.metrics[-1]["loss"]


def test_sections_change_a_config_and_other_words_are_options_of_training(config, tmp_path) -> None:
    run = sslcli.from_config(
        config, optimizer={"name": "adamw", "lr": 0.1}, max_steps=1, seed=3, output=tmp_path / "run"
    )
    assert run.config["optimizer"]["name"] == "adamw"
    assert "momentum" not in run.config["optimizer"]
    assert (run.config["training"]["max_steps"], run.config["training"]["batch_size"], run.config["seed"]) == (1, 8, 3)


def test_every_mistake_is_told_with_its_place_at_once(tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        sslcli.train(method="simclr", data="shapes", optimizer={"lrr": 1}, epoch=3, output=tmp_path / "run")
    first, second = str(caught.value).splitlines()
    assert first.startswith("sslcli.train: optimizer.lrr: unknown option of '")
    assert "did you mean lr" in first
    assert second == "sslcli.train: training.epoch: unknown option of 'training'; did you mean epochs?"
    assert not (tmp_path / "run").exists()


def test_without_output_a_run_is_called_by_method_data_and_hash(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(None, training={"max_steps": 1})
    assert run.path.parent.name == "runs"
    assert run.path.name.startswith("simclr-Arrays-")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": object()}, "method: should be a name, a mapping with `name`, a subclass of Method; not a object"),
        ({"method": Arrays}, "method: should be .* not the class Arrays"),
        ({"optimizer": torch.optim.SGD}, "optimizer: should be .* a subclass of OptimizerPlugin; not the class SGD"),
        ({"data": Arrays}, "data: should be .* any object with __len__ and __getitem__; not the class Arrays"),
        ({"optimizer": {"name": "sgd", "lr": object()}}, "optimizer: a object cannot stand in a config"),
        ({"overrides": {"data": Arrays(8)}}, "overrides: a Arrays cannot stand in a config"),
        ({"callbacks": "knn"}, "callbacks: should be a list of objects and names, or a mapping"),
        ({"data": Arrays(8), "labeled": Arrays(8)}, "labeled: should be a pair of data sets"),
        ({"data": Arrays(8), "labeled": (Arrays(8),)}, "labeled: should be a pair of data sets"),
        ({"overrides": ["optimizer.lr=1"]}, "overrides: should be a mapping, of options by dotted key, not a list"),
        ({"optimiser": "sgd"}, r"sslcli\.train: optimiser: unknown keyword; did you mean optimizer\?"),
        ({"data": "shapes", "labeled": (Arrays(8), Arrays(8))}, "labeled: goes with a data set that is given as an"),
    ],
)
def test_what_has_no_place_in_a_section_is_refused_in_one_line(sections, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sslcli.train(**{**SHAPES, **sections}, output=tmp_path / "run")
    assert "\n" not in str(caught.value)


class Watch(Callback):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.losses: list[float] = []

    def on_step(self, context) -> None:
        self.steps += 1

    def on_log(self, context, record) -> None:
        self.losses.append(record["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = int(state["steps"])


class Epochs:
    """No subclass of anything, with one hook alone."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_epoch(self, context) -> None:
        self.seen.append(context.progress.epoch)


def test_callbacks_are_objects_classes_names_or_options_by_name(tmp_path) -> None:
    watch, first, second = Watch(), Epochs(), Epochs()
    off = {"knn": None, "online_probe": None, "tensorboard": None, "collapse": {"std": 0.01}}
    run = tiny_run(tmp_path / "run", callbacks=[watch, first, second, "progress", off])
    assert first.seen == second.seen == [1.0, 2.0]
    assert watch.losses == [record["loss"] for record in run.metrics]
    kept = run.config["callbacks"]
    assert {"python:Watch", "python:Epochs", "python:Epochs-2"} <= set(kept)
    assert (kept["tensorboard"], kept["collapse"]["std"]) == (None, 0.01)
    assert not (run.path / "tensorboard").exists()


def test_a_callbacks_state_survives_a_restart(tmp_path) -> None:
    callbacks = {**TINY["callbacks"], "mine": Watch()}
    tiny_run(tmp_path / "run", callbacks=callbacks, training={"max_steps": 3})
    again = Watch()
    tiny_run(tmp_path / "run", callbacks={**callbacks, "mine": again}, resume=True)
    assert again.steps == 10


def test_a_callback_whose_hook_nobody_calls_is_refused(tmp_path) -> None:
    class Misspelt:
        def on_epoch_end(self, trainer) -> None: ...

    class Nothing: ...

    with pytest.raises(UserError, match=r"callbacks: Misspelt.on_epoch_end is no hook; did you mean .*on_epoch"):
        tiny_run(tmp_path / "run", callbacks=[Misspelt()])
    with pytest.raises(UserError, match="callbacks: a Nothing has none of the hooks on_end, on_epoch"):
        tiny_run(tmp_path / "run", callbacks=[Nothing()])


class Scaled(SimCLR):
    """SimCLR with its loss times two, under the same options."""

    def forward(self, batch):
        step = super().forward(batch)
        step.loss = 2 * step.loss
        return step


def test_a_plugin_class_of_ones_own_stands_in_the_place_of_a_name(tmp_path) -> None:
    stop = {"max_steps": 1}
    plain = tiny_run(tmp_path / "plain", backbone=SHAPES["backbone"], training=stop)
    mine = {**TINY["method"], "name": Scaled}
    run = tiny_run(tmp_path / "run", method=mine, backbone=SHAPES["backbone"], training=stop)
    assert run.config["method"]["name"] == "python:Scaled"
    assert run.metrics[0]["loss"] == pytest.approx(2 * plain.metrics[0]["loss"], rel=1e-6)


def test_the_shell_says_in_one_line_what_an_object_in_a_run_means(tmp_path) -> None:
    run = tiny_run(tmp_path / "run", training={"max_steps": 1})
    for words in (["eval", str(run.path)], ["export", "backbone", str(run.path)]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.endswith(
            "backbone 'python:Net' was an object of the Python program that trained: load it with "
            "sslcli.load_backbone(path, into=module), or give it again: sslcli.Run(path, backbone=…)"
        )
    resumed = CliRunner().invoke(app, ["train", str(run.path), "--resume"])
    assert "data.name: data set 'python:Arrays' was an object of the Python program that trained" in resumed.stderr
    assert "Traceback" not in resumed.stderr


def test_objects_are_known_while_they_are_needed_and_only_behind_their_prefix() -> None:
    with plugins.registered({("methods", "simclr"): Scaled}):
        assert plugins.load("methods", "python:simclr") is Scaled
        assert plugins.load("methods", "simclr") is SimCLR
    with pytest.raises(plugins.PluginError, match="give it again in Python"):
        plugins.load("methods", "python:simclr")


def test_a_run_tells_what_it_is(config, tmp_path) -> None:
    run = sslcli.train(config, {"training.max_steps": 2}, output=tmp_path / "run")
    assert repr(run) == f"<Run '{run.path}': simclr, resnet18 on shapes, step 2 of 8>"
    again = sslcli.Run(str(run.path))
    assert repr(again) == f"<Run '{run.path}': simclr, resnet18 on shapes, step 2>"
    assert again.metrics == run.metrics
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert (run.card.image_size, run.card.method, run.card.feature_dim) == (16, "simclr", 32)
    with pytest.raises(UserError, match=r"nowhere: is no run directory"):
        sslcli.Run(tmp_path / "nowhere")


def test_metrics_become_a_frame_where_pandas_is_there(config, tmp_path, monkeypatch) -> None:
    run = sslcli.train(config, {"training.max_steps": 1}, output=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    assert run.metrics_frame() == ("frame", run.metrics)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install pandas, or use run.metrics"):
        run.metrics_frame()


def test_a_run_evaluates_and_exports_as_the_functions_do(config, tmp_path) -> None:
    run = sslcli.train(config, {"training.max_steps": 2}, output=tmp_path / "run")
    limit = {"data.limit": 16}
    method = run.evaluate("knn", k=[3], **limit)
    assert method.metrics == sslcli.evaluate(run.path, "knn", {"k": [3], **limit}).metrics
    assert method.metrics == sslcli.evaluate(run, "knn", {"k": [3], **limit}).metrics
    rows = sslcli.evaluate_all([run, "cifar_resnet20"], "knn", {"k": [3], **limit})
    assert [row.target for row in rows] == [str(run.path), "cifar_resnet20"]
    with pytest.raises(UserError, match="evaluate_all"):
        run.evaluate("all")
    for wrong, message in (
        ({"target": torch.nn.Identity()}, "should be a Run, a path or a name, not Identity"),
        ({"target": []}, "what to evaluate"),
        ({"seeds": 0}, "seeds: should be a whole number from 1, not 0"),
        ({"seed": 0.5}, "seed: should be a whole number from 0, not 0.5"),
        ({"eval": Arrays(8)}, "train and eval: data sets as objects go together; give both"),
        ({"overrides": ["k=3"]}, "overrides: should be a mapping"),
    ):
        with pytest.raises(UserError, match=message):
            sslcli.evaluate(**{"target": run, **wrong})
    exported = run.export("backbone", tmp_path / "file.safetensors")
    names: dict[str, Any] = {}
    exec(exported.how_to_load, names)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(names["model"](images).pooled, run.backbone()(images).pooled)
    with pytest.raises(UserError, match="its backbone is 'resnet18', which needs no module"):
        run.backbone(torch.nn.Identity())


def test_importing_sslcli_does_not_import_torch() -> None:
    import subprocess

    program = "import sys, sslcli; sslcli.train; sslcli.Run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
