"""Collapsed and stuck runs are named in words within stated steps, on cases that are provoked; healthy runs are not."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ConfigMaker
from evaluation_helpers import FakeRun, InMemory
from run_helpers import method_config
from small_options import method_cases, needs_vit

from sslcli import plugins
from sslcli.callbacks.collapse import LOSSES, CollapseOptions, CollapseWatch
from sslcli.config.resolve import load_config
from sslcli.contracts.method import Batch, Progress, View
from sslcli.training.setup import build
from sslcli.training.train import train

Lines = list[dict[str, float]]
SIZE = ["views=null", "data.count=64", "training.batch_size=16", "schedule=constant", "optimizer.lr=0.1"]
SMALL = "projector: {hidden_dim: 32, output_dim: 16}"
SIMSIAM = "projector: {layers: 2, hidden_dim: 64, output_dim: 32}, predictor: {hidden_dim: 16}"
BYOL = f"{SMALL}, predictor: {{hidden_dim: 32}}, momentum: 0.9"
SWAV = f"{SMALL}, prototypes: 50, frozen_epochs: 0.25, queue_size: 0"
DINO = "head: {hidden_dim: 64, bottleneck_dim: 32, prototypes: 64, norm: batch}, momentum: 0.99"
FLAT = "teacher_temperature: 0.1, teacher_temperature_start: 0.1"
#: What names the case.
ALIKE = "the embeddings of all images are nearly the same"
LINE = "all features lie along one line"
ONE = "the teacher names one prototype for all images"
STUCK = "the loss is stuck at step"
ABOVE = "is far above"
UNMOVED = "nothing has moved"


@pytest.fixture
def provoked() -> Iterator[None]:
    """Registers the methods of `provoked_plugins.py`."""
    plugins.register_file(Path(__file__).parents[1] / "provoked_plugins.py")
    yield
    plugins.clear_cache()


def warned(lines: Lines, messages: list[str], chance: float | None = math.log(100), every: int = 10) -> list[str]:
    """What is said of a run of 400 steps with these log lines, each so many steps after the one before, whose encoder
    moves."""
    data = InMemory(torch.arange(8) % 2, 8, 8)
    watch, run = CollapseWatch(CollapseOptions()), FakeRun(data, data)
    run.chance_loss = chance
    watch.on_start(run)
    with torch.no_grad():
        run.backbone.conv.weight.add_(0.1)
    for number, line in enumerate(lines, start=1):
        run.progress = Progress(number * every, 400, 4)
        watch.on_log(run, {"step": number * every, **line})
    return messages


def test_a_loss_that_stays_at_log_n_is_stuck_once_a_run_has_had_a_hundred_steps(messages: list[str]) -> None:
    lines: Lines = [{"loss": 4.60}] * 30
    (found,) = warned(lines, messages)
    assert found.startswith("warning: the loss is stuck at step 190: 4.6 is not clearly below 4.605")
    assert "of swav epsilon" in found


def test_a_loss_that_was_lower_within_ten_lines_or_has_no_such_value_is_not(messages: list[str]) -> None:
    lines: Lines = [{"loss": 4.6}] * (LOSSES - 1) + [{"loss": 4.4}]
    assert warned(lines * 3, messages) == []
    assert warned([{"loss": 4.60}] * 30, messages, chance=None) == []


def test_a_loss_above_that_of_chance_names_the_temperature(messages: list[str]) -> None:
    (found,) = warned([{"loss": 283.0}] * 20, messages)
    assert "the loss at step 190, 283, is far above 4.605" in found
    assert "the temperature is too small" in found


def test_embeddings_that_are_alike_are_a_collapse_though_features_are_not(messages: list[str]) -> None:
    line = {"feature_std": 0.6, "neg_cos": 0.9996, "loss": 0.001}
    (found,) = warned([line] * 20, messages)
    assert "collapsing at step 110: std of the normalized features 0.6000" in found
    assert "of different images 0.9996: the embeddings of all images are nearly the same" in found
    messages.clear()
    assert warned([{**line, "neg_cos": 0.98}] * 20, messages) == []


def test_a_sure_teacher_is_a_collapse_only_if_embeddings_are_similar(messages: list[str]) -> None:
    sure = {"teacher_entropy": 0.9, "neg_cos": 0.4}
    assert warned([sure] * 20, messages) == []
    (found,) = warned([{**sure, "neg_cos": 0.8}] * 20, messages)
    assert ONE in found


CHANCE = ["simclr", "simclr_v2", "supcon", "moco_v1", "moco_v2", "eqco", "moco_v3", "swav", "dino"]


@pytest.mark.parametrize("method", CHANCE)
def test_the_loss_of_chance_is_that_of_a_network_whose_outputs_are_all_the_same(method: str) -> None:
    session = build(method_config(method))
    with torch.no_grad():
        for parameter in session.method.parameters():
            parameter.zero_()  # whatever the image, all embeddings are zeros, with cosine 0 to everything
    images = torch.randn(8, 3, 16, 16)
    keys = {name: torch.tensor(function(0)) for name, function in session.method.schedules().items()}
    found = session.method(Batch([View(images), View(images)], torch.arange(8), torch.arange(8), keys)).loss
    assert float(found.detach()) == pytest.approx(session.method.chance_loss(8), rel=1e-3)


def warnings(tiny: ConfigMaker, run: Path, messages: list[str], steps: int, *overrides: str) -> list[str]:
    """What a run of so many steps warns of, judged from half of them on."""
    watch = f"callbacks.collapse={{steps: {steps // 2}}}"
    length = [f"training.epochs={steps // 4}", "training.log_every=2", "checkpoints.every_epochs=null"]
    train(tiny(*SIZE, *length, watch, *overrides), run)
    return [line for line in messages if line.startswith("warning: the ")]


@pytest.mark.parametrize(
    ("method", "lr", "words"),
    [
        (f"{{name: byol_no_predictor, {BYOL}}}", 0.1, ALIKE),
        (f"{{name: simclr, {SMALL}, temperature: 10}}", 0.1, STUCK),
        (f"{{name: vicreg, {SMALL}}}", 1e-9, UNMOVED),
    ],
)
@pytest.mark.usefixtures("provoked")
def test_a_provoked_case_is_named_within_40_steps(tiny, tmp_path, messages, method, lr, words) -> None:
    found = warnings(tiny, tmp_path / "run", messages, 40, f"method={method}", f"optimizer.lr={lr}")
    assert any(words in line for line in found), found


def test_a_healthy_run_is_not(tiny: ConfigMaker, tmp_path: Path, messages: list[str]) -> None:
    assert warnings(tiny, tmp_path / "run", messages, 40, f"method={{name: byol, {BYOL}}}") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "words"),
    [
        (f"{{name: byol_no_stop, {BYOL}}}", ALIKE),
        (f"{{name: simsiam_no_predictor, {SIMSIAM}}}", LINE),
        (f"{{name: simsiam_no_stop, {SIMSIAM}}}", LINE),
        (f"{{name: simclr, {SMALL}, temperature: 0.001}}", ABOVE),
        (f"{{name: swav, {SWAV}, epsilon: 0.05}}", STUCK),
        (f"{{name: dino, {DINO}, center_momentum: 0.999999}}", ONE),
        (f"{{name: dino, {DINO}, {FLAT}}}", STUCK),
    ],
)
@pytest.mark.usefixtures("provoked")
def test_a_slower_case_is_named_within_320_steps(tiny, tmp_path, messages, method, words) -> None:
    more = ["data.count=256", "training.batch_size=32", "training.epochs=40", "callbacks.collapse={steps: 100}"]
    optimizer = ["optimizer={name: adamw, lr: 0.002}"] if "dino" in method else []
    found = warnings(tiny, tmp_path / "run", messages, 320, *more, f"method={method}", *optimizer)
    assert any(words in line for line in found), found


CIFAR10 = Path(os.environ.get("SSLCLI_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cifar10"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 in {CIFAR10}; SSLCLI_TEST_DATA says where cifar10/ is")
@pytest.mark.parametrize("method", [case for case in method_cases() if " " not in case])
def test_the_features_of_an_example_config_do_not_collapse_at_first(
    tmp_path: Path, messages: list[str], method: str
) -> None:
    """Of the whole schedule, on few images and a narrow network; its loss is judged later."""
    few = ["data.limit=512", "training.batch_size=64", "training.max_steps=60", "training.log_every=5"]
    narrow = ["backbone.depth=2", "backbone.patch_size=4"] if needs_vit(method) else ["backbone.width=8"]
    fast = [*narrow, "training.compile=none", "training.precision=fp32", "training.device=cpu"]
    off = [f"callbacks.{name}=null" for name in ("knn", "online_probe", "tensorboard", "progress")]
    train(load_config(f"cifar10/{method}", [f"data.root={CIFAR10}", *few, *fast, *off]), tmp_path / "run")
    assert [line for line in messages if line.startswith("warning: the ")] == []
