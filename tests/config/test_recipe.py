"""The recipe follows the method: what gives way if an override names another one, what stays, and the run's name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sslcli
from sslcli.cli.main import app
from sslcli.config.resolve import RunConfig, load_config
from sslcli.contracts.errors import ConfigError
from sslcli.methods.byol import BYOL
from sslcli.runs.directory import default_directory

FILE = """\
method: {name: simclr, temperature: 0.1, projector: {layers: 2}}
backbone: {name: resnet18, stem: small, width: 8, zero_init_residual: false}
data: {name: shapes, count: 64}
views: {preset: simclr, size: 24, crop_scale: [0.3, 1.0]}
optimizer: {name: lars, lr: 0.3, weight_decay: 1e-6}
schedule: {name: step, milestones: [0.5]}
training: {epochs: 30, batch_size: 16, clip: {norm: 1.0}}
"""
DINO = "method: dino\n" + "".join(line for line in FILE.splitlines(keepends=True) if line[:4] in ("back", "data"))
DINO += "views: {size: 24}\ntraining: {epochs: 30, batch_size: 16}\n"


def config(tmp_path: Path, *overrides: str, text: str = FILE, **more: Any) -> RunConfig:
    (tmp_path / "simclr.yaml").write_text(text)
    return load_config(tmp_path / "simclr.yaml", list(overrides), **more)


@pytest.mark.parametrize("override", ["method=dino", "method.name=dino", "method={name: dino}"])
def test_views_optimizer_schedule_and_the_clipping_are_those_of_the_new_method(
    tmp_path: Path, override: str, messages: list[str]
) -> None:
    assert config(tmp_path, override) == config(tmp_path, text=DINO)
    assert messages == [
        f"{tmp_path}/simclr.yaml: dino in place of simclr: its own recipe replaces method.temperature, "
        "method.projector, views.preset, views.crop_scale, optimizer, schedule, training.clip of the file"
    ]


@pytest.mark.parametrize("first", [True, False])
def test_what_an_override_names_is_the_overrides(tmp_path: Path, first: bool) -> None:
    named = ["optimizer.lr=0.01", "schedule={name: constant}", "views.size=32", "training.clip.norm=2", "views.flip=0"]
    found = config(tmp_path, *(["method=dino", *named] if first else [*named, "method=dino"]))
    own = config(tmp_path, text=DINO)
    assert found.optimizer.plain() == {**own.optimizer.plain(), "lr": 0.01}
    assert found.schedule.name == "constant"
    assert {view.size for view in found.views} == {32}
    assert all("flip" not in {operation.name for operation in view.operations} for view in found.views)
    assert found.training.clip is not None
    assert found.training.clip.norm == 2


def test_a_null_that_the_file_says_too_counts_as_named(tmp_path: Path) -> None:
    text = FILE.replace("clip: {norm: 1.0}", "clip: null")
    assert config(tmp_path, "method=dino", text=text).training.clip is not None
    assert config(tmp_path, "method=dino", "training.clip=null", text=text).training.clip is None


def test_keys_of_training_that_only_the_old_method_sets_give_way_and_others_stay(tmp_path: Path) -> None:
    text = FILE.replace("simclr, temperature: 0.1, projector: {layers: 2}", "dino")
    found = config(tmp_path, "method=byol", text=text)
    assert found.training.clip is None
    assert (found.training.epochs, found.training.batch_size) == (30, 16)
    kept = config(tmp_path, "method=byol")  # neither SimCLR nor BYOL says anything about clipping
    assert kept.training.clip is not None
    assert (kept.backbone.options.width, kept.data.options.count) == (8, 64)


def test_views_in_a_list_or_in_phases_give_way_with_their_sizes(tmp_path: Path) -> None:
    phases = "{phases: [{until: 50%, views: {preset: simclr, size: 24}}, {views: {preset: simclr}}]}"
    for views in (phases, "[{size: 24}, {size: 24}]"):
        text = FILE.replace("{preset: simclr, size: 24, crop_scale: [0.3, 1.0]}", views)
        assert {view.size for view in config(tmp_path, "method=byol", text=text).views} == {32}


def test_the_same_method_and_a_method_that_the_file_leaves_open_change_nothing(
    tmp_path: Path, messages: list[str]
) -> None:
    same = config(tmp_path, "method={name: simclr, temperature: 0.1, projector: {layers: 2}}")
    assert same == config(tmp_path)
    open_file = FILE[FILE.index("backbone") :]
    assert config(tmp_path, "method=byol", text=open_file).optimizer.name == "lars"
    assert default_directory(same, "simclr").name.startswith("simclr-")
    assert messages == []


def test_a_file_without_a_recipe_gives_nothing_to_tell(tmp_path: Path, messages: list[str]) -> None:
    config(tmp_path, "method=byol", text="method: simclr\ndata: shapes\ntraining: {epochs: 30}\n")
    assert messages == []


@pytest.mark.usefixtures("odd_plugins")
def test_a_method_without_an_optimizer_of_its_own_keeps_the_files(tmp_path: Path) -> None:
    found = config(tmp_path, "method=mean_method", "optimizer.lr=0.2")
    assert (found.optimizer.name, found.optimizer.options.lr, found.schedule.name) == ("lars", 0.2, "step")


def test_problems_keep_their_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "method=dino", "optimizer.lrr=1", text=FILE.replace("epochs", "eopchs"))
    told = sorted(line.replace(f"{tmp_path}/", "") for line in caught.value.problems)
    assert told[0].startswith("command line: optimizer.lrr: unknown option of 'sgd'")
    assert told[1].startswith("simclr.yaml:7: training.eopchs: unknown option")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("simclr", "dino"), ("simclr-1000", "dino-1000"), ("quickstart", "quickstart-dino")],
)
def test_the_run_is_named_after_the_method(tmp_path: Path, name: str, expected: str) -> None:
    assert default_directory(config(tmp_path, "method=dino"), name).name.rpartition("-")[0] == expected


def test_a_run_that_is_resumed_keeps_what_it_has(tmp_path: Path) -> None:
    kept = config(tmp_path, "method=dino", follow=False)
    assert (kept.optimizer.name, kept.views[0].size, kept.schedule.name) == ("lars", 24, "step")


def test_a_python_program_follows_the_same_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mine(BYOL):
        pass

    monkeypatch.chdir(tmp_path)
    Path("simclr.yaml").write_text(FILE)
    heads = {"projector": {"hidden_dim": 8, "output_dim": 8}, "predictor": {"hidden_dim": 8}}
    with caplog.at_level(logging.INFO, logger="sslcli"):
        run = sslcli.train(
            "simclr.yaml", {"optimizer.lr": 0.05}, method={"name": Mine, **heads}, max_steps=1, device="cpu",
            callbacks={"knn": None, "online_probe": None, "tensorboard": None, "progress": None},
        )  # fmt: skip
    stored = run.config
    assert (stored["optimizer"]["lr"], stored["optimizer"]["weight_decay"]) == (0.05, 1.5e-6)
    assert (stored["schedule"]["name"], len(stored["views"])) == ("cosine", 2)
    assert run.path.name.startswith("Mine-")
    assert any("Mine in place of simclr" in line for line in caplog.messages)


@pytest.mark.usefixtures("no_estimate")
def test_the_command_line_names_the_run_and_says_once_what_gave_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("simclr.yaml").write_text(FILE)
    done = CliRunner().invoke(app, ["train", "simclr.yaml", "method=byol", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "output: runs/byol-" in done.output
    assert done.output.count("byol in place of simclr") == 1
