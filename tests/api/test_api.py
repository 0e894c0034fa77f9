"""`sslcli.train` and `Run`: the options of the YAML config, callbacks as objects, and the properties of a run."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest
import torch
import yaml
from api_helpers import TINY, Arrays, tiny_run
from run_helpers import refused

import sslcli
from sslcli import plugins
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


def test_sections_in_python_resolve_like_the_yaml_config(config, tmp_path) -> None:
    stop = {"training.max_steps": 1}
    written = sslcli.train(config, stop, output=tmp_path / "yaml")
    typed = sslcli.train(**SHAPES, overrides=stop, output=tmp_path / "python")
    assert written.config == typed.config
    assert written.metrics[-1]["loss"] == typed.metrics[-1]["loss"]


def test_sections_change_a_config_and_other_keywords_are_options_of_training(config, tmp_path) -> None:
    run = sslcli.from_config(
        config, {"training.epochs": 1}, optimizer={"name": "adamw", "lr": 0.1}, max_steps=1, seed=3,
        output=tmp_path / "run",
    )  # fmt: skip
    assert run.config["optimizer"]["name"] == "adamw"
    assert "momentum" not in run.config["optimizer"]
    training = run.config["training"]
    assert (training["max_steps"], training["batch_size"], training["epochs"], run.config["seed"]) == (1, 8, 1, 3)


def test_every_mistake_is_reported_with_its_option(tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        sslcli.train(method="simclr", data="shapes", optimizer={"lrr": 1}, epoch=3, output=tmp_path / "run")
    first, second = str(caught.value).splitlines()
    assert first.startswith("sslcli.train: optimizer.lrr: unknown option of '")
    assert "did you mean lr" in first
    assert second == "sslcli.train: training.epoch: unknown option of 'training'; did you mean epochs?"
    assert not (tmp_path / "run").exists()


def test_without_output_a_run_is_named_after_method_data_and_hash(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(None, training={"max_steps": 1})
    assert run.path.parent.name == "runs"
    assert run.path.name.startswith("simclr-Arrays-")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": object()}, "method: should be a name, a mapping with `name`, a subclass of Method; not an object"),
        ({"method": Arrays}, "method: should be .* not the class Arrays"),
        ({"optimizer": torch.optim.SGD}, "optimizer: should be .* a subclass of OptimizerPlugin; not the class SGD"),
        ({"data": Arrays}, "data: should be .* any object with __len__ and __getitem__; not the class Arrays"),
        ({"optimizer": {"name": "sgd", "lr": object()}}, "optimizer: a config cannot hold an object of type object"),
        ({"overrides": {"data": Arrays(8)}}, "overrides: a config cannot hold an object of type Arrays"),
        ({"callbacks": "knn"}, "callbacks: should be a list of objects and names, or a mapping"),
        ({"data": Arrays(8), "labeled": Arrays(8)}, "labeled: should be a pair of datasets"),
        ({"data": Arrays(8), "labeled": (Arrays(8),)}, "labeled: should be a pair of datasets"),
        ({"overrides": ["optimizer.lr=1"]}, "overrides: should be a mapping of options by dotted key, not a list"),
        ({"optimiser": "sgd"}, r"sslcli\.train: optimiser: unknown keyword; did you mean optimizer\?"),
        ({"data": "shapes", "labeled": (Arrays(8), Arrays(8))}, "labeled: needs a dataset that is given as an object"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(sections, message, tmp_path) -> None:
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
        self.losses += [record["loss"]] if "loss" in record else []  # others are what monitors log

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = int(state["steps"])


class Epochs:
    """Not a subclass, and only one hook."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_epoch(self, context) -> None:
        self.seen.append(context.progress.epoch)


def test_callbacks_are_objects_classes_names_or_options_by_name(tmp_path) -> None:
    watch, first, second = Watch(), Epochs(), Epochs()
    off = {"knn": None, "online_probe": None, "tensorboard": None, "collapse": {"std": 0.01}}
    run = tiny_run(tmp_path / "run", callbacks=[watch, first, second, "progress", off])
    assert first.seen == second.seen == [1.0, 2.0]
    assert watch.losses == [record["loss"] for record in run.metrics if "loss" in record]
    kept = run.config["callbacks"]
    assert {"python:Watch", "python:Epochs", "python:Epochs-2"} <= set(kept)
    assert (kept["tensorboard"], kept["collapse"]["std"]) == (None, 0.01)
    assert not (run.path / "tensorboard").exists()


def test_the_state_of_a_callback_is_restored_on_resume(tmp_path) -> None:
    callbacks = {**TINY["callbacks"], "mine": Watch()}
    tiny_run(tmp_path / "run", callbacks=callbacks, training={"max_steps": 3})
    again = Watch()
    tiny_run(tmp_path / "run", callbacks={**callbacks, "mine": again}, resume=True)
    assert again.steps == 10


def test_a_callback_without_a_hook_is_refused(tmp_path) -> None:
    class Misspelt:
        def on_epoch_end(self, trainer) -> None: ...

    for callback, message in (
        (Misspelt(), r"callbacks: Misspelt.on_epoch_end is not a hook; did you mean .*on_epoch"),
        (object(), "callbacks: a object has none of the hooks on_end, on_epoch"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_run(tmp_path / "run", callbacks=[callback])


class Scaled(SimCLR):
    """SimCLR with its loss times two and the same options."""

    def forward(self, batch):
        step = super().forward(batch)
        step.loss = 2 * step.loss
        return step


def test_a_plugin_class_can_be_given_instead_of_a_name(tmp_path) -> None:
    stop = {"max_steps": 1}
    plain = tiny_run(tmp_path / "plain", backbone=SHAPES["backbone"], training=stop)
    mine = {**TINY["method"], "name": Scaled}
    run = tiny_run(tmp_path / "run", method=mine, backbone=SHAPES["backbone"], training=stop)
    assert run.config["method"]["name"] == "python:Scaled"
    assert run.metrics[0]["loss"] == pytest.approx(2 * plain.metrics[0]["loss"], rel=1e-6)
    with plugins.registered({("methods", "simclr"): Scaled}):  # known only there, and only with their prefix
        assert plugins.load("methods", "python:simclr") is Scaled
        assert plugins.load("methods", "simclr") is SimCLR
    with pytest.raises(plugins.PluginError, match="pass it again in Python"):
        plugins.load("methods", "python:simclr")


def test_commands_explain_in_one_line_that_a_run_was_trained_with_objects(tmp_path) -> None:
    run = tiny_run(tmp_path / "run", training={"max_steps": 1})
    for words in (["eval", run.path], ["export", "backbone", run.path]):
        assert refused(*words).endswith(
            "backbone 'python:Net' was an object in the Python program that trained this run: load it with "
            "sslcli.load_backbone(path, into=module), or pass it again: sslcli.Run(path, backbone=…)"
        )
    err = refused("train", run.path, "--resume", lines=2)
    assert "data.name: dataset 'python:Arrays' was an object in the Python program that trained this run" in err


def test_a_run_has_its_steps_log_card_and_table(config, tmp_path, monkeypatch) -> None:
    run = sslcli.train(config, {"training.max_steps": 2}, output=tmp_path / "run")
    assert (run.step, run.total_steps, run.signal, run.path) == (2, 8, None, tmp_path / "run")
    assert repr(run) == f"<Run '{run.path}': simclr, resnet18 on shapes, step 2 of 8>"
    again = sslcli.Run(str(run.path))
    assert repr(again) == f"<Run '{run.path}': simclr, resnet18 on shapes, step 2>"
    assert again.metrics == run.metrics
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert (run.card.image_size, run.card.method, run.card.feature_dim) == (16, "simclr", 32)
    with pytest.raises(UserError, match=r"nowhere: is not a run directory"):
        sslcli.Run(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    assert run.metrics_frame() == ("frame", run.metrics)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install pandas, or use run.metrics"):
        run.metrics_frame()


def test_a_run_evaluates_and_exports_like_the_functions(config, tmp_path) -> None:
    run = sslcli.train(config, {"training.max_steps": 2}, output=tmp_path / "run")
    options = {"k": [3], "data.limit": 16}
    metrics = run.evaluate("knn", **options).metrics
    assert metrics == sslcli.evaluate(run.path, "knn", options).metrics == sslcli.evaluate(run, "knn", options).metrics
    rows = sslcli.evaluate_all([run, "cifar_resnet20"], "knn", options)
    assert [row.target for row in rows] == [str(run.path), "cifar_resnet20"]
    for wrong, message in (
        ({"target": torch.nn.Identity()}, "should be a Run, a path or a name, not Identity"),
        ({"target": []}, "nothing to evaluate"),
        ({"method": "all"}, "evaluate_all"),
        ({"seeds": 0}, "seeds: should be a whole number from 1, not 0"),
        ({"seed": 0.5}, "seed: should be a whole number from 0, not 0.5"),
        ({"eval": Arrays(8)}, "train and eval: datasets as objects go together; give both"),
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
    program = "import sys, sslcli; sslcli.train; sslcli.evaluate; sslcli.Run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
