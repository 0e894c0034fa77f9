"""What log lines hold and cost: the rate, the effective rank, the collapse watch, and fp16's loss scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ConfigMaker
from evaluation_helpers import FakeRun, InMemory
from run_helpers import newest
from torch import nn

from sslcli.callbacks.collapse import CollapseOptions, CollapseWatch
from sslcli.methods.simclr import SimCLR
from sslcli.training import loop as loop_module
from sslcli.training import meter
from sslcli.training.checks import RunFailed
from sslcli.training.loop import RANK_EVERY
from sslcli.training.scaler import MOST_SKIPPED, LossScaler
from sslcli.training.train import train

CPU = torch.device("cpu")


def log_lines(run: Path) -> list[dict[str, Any]]:
    """The loop's own lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_the_rate_includes_what_the_log_lines_cost(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but for the effective rank, which takes ten seconds."""
    now = [0.0]

    def slow(features: torch.Tensor) -> torch.Tensor:
        now[0] += 10
        return torch.ones(())

    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop_module, "effective_rank", slow)
    train(tiny("training.log_every=1", "training.epochs=1"), tmp_path / "run")
    rates = [line["images_per_second"] for line in log_lines(tmp_path / "run")]
    assert rates[1] == 8 / 10  # the batch's images in the time that the first line took
    assert min(rates[0], rates[2]) > 1e6


def test_the_effective_rank_is_in_every_tenth_line_also_of_a_resumed_run(tiny: ConfigMaker, tmp_path: Path) -> None:
    overrides = ["training.log_every=1"]  # 12 steps
    train(tiny(*overrides), tmp_path / "whole")
    lines = log_lines(tmp_path / "whole")
    assert all("feature_std" in line for line in lines)
    assert [line["step"] for line in lines if "feature_rank" in line] == [1, RANK_EVERY, 12]
    train(tiny(*overrides, "training.max_steps=7"), tmp_path / "parts")
    train(tiny(*overrides), tmp_path / "parts", resume=True)
    assert [line["step"] for line in log_lines(tmp_path / "parts") if "feature_rank" in line] == [1, 7, RANK_EVERY, 12]


def collapse_warnings(records: list[dict[str, float]], messages: list[str], **options: Any) -> list[str]:
    watch, run = CollapseWatch(CollapseOptions(**options)), FakeRun(*(InMemory(torch.arange(8) % 2, 8, 8),) * 2)
    for step, record in enumerate(records):
        watch.on_log(run, {"step": step, **record})
    return messages


def test_a_low_rank_is_reported_though_only_some_lines_have_one(messages: list[str]) -> None:
    thin: list[dict[str, float]] = [{"feature_std": 0.9, "feature_rank": 1.1}, *[{"feature_std": 0.9}] * 9]
    assert collapse_warnings(thin, messages) == []
    [message] = collapse_warnings(thin * 3, messages)
    assert message.startswith("warning: the representation is collapsing at step 10: std")
    assert "0.9000 (1 = spread evenly), effective rank 1.10" in message
    assert "all features lie along one line; if that lasts, try a smaller optimizer.lr" in message


def test_a_collapse_is_told_in_words_once(messages: list[str]) -> None:
    alike, good = [{"feature_std": 0.001}] * 4, [{"feature_std": 0.9}]
    (found,) = collapse_warnings([*alike, *good, *alike], messages)
    assert "at step 1: std of the normalized features 0.0010 (1 = spread evenly): the features of all" in found


def test_skipped_updates_are_counted_and_steps_behave_as_torchs() -> None:
    scaler, theirs = LossScaler(CPU, enabled=True), torch.amp.GradScaler("cpu")
    pairs = []
    for each in (scaler, theirs):
        parameter = nn.Parameter(torch.ones(2))
        pairs.append((each, parameter, torch.optim.SGD([parameter], lr=0.1)))
    for bad in (True, True, False, True, True, True, False):
        for each, parameter, optimizer in pairs:
            each.scale(parameter.sum()).backward()
            assert parameter.grad is not None
            parameter.grad *= torch.inf if bad else 1.0
            each.unscale_(optimizer)
            each.step(optimizer)
            each.update()
            optimizer.zero_grad()
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert scaler.state_dict() == theirs.state_dict()
    assert scaler.most_in_a_row() == 3
    assert scaler.take() == {"loss_scale": 65536 / 2**5, "skipped_updates": 5}
    assert scaler.take()["skipped_updates"] == 0
    assert LossScaler(CPU, enabled=False).take() == {}


@pytest.fixture
def _overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is finite, with gradients that overflow in fp16 at any scale."""
    forward = SimCLR.forward

    def large(self: SimCLR, batch: Any) -> Any:
        step = forward(self, batch)
        step.loss = step.loss * 1e25
        return step

    monkeypatch.setattr(SimCLR, "forward", large)


@pytest.mark.usefixtures("_overflowing")
def test_a_run_in_fp16_that_can_only_skip_stops_and_says_so(
    tiny: ConfigMaker, tmp_path: Path, messages: list[str]
) -> None:
    config = tiny("training.precision=fp16", "training.epochs=10", "training.log_every=7")
    expected = rf"^{MOST_SKIPPED} updates in a row were skipped .* try training.precision=bf16 or fp32"
    with pytest.raises(RunFailed, match=expected):
        train(config, tmp_path / "run")
    lines = log_lines(tmp_path / "run")
    assert [(line["skipped_updates"], line["loss_scale"]) for line in lines] == [(7, 2.0**9), (7, 2.0**2)]
    assert newest(tmp_path / "run").step <= MOST_SKIPPED
    assert [line.partition(",")[0] for line in messages if "skipped" in line] == [
        "warning: the last 7 updates were skipped", "warning: the last 14 updates were skipped"
    ]  # fmt: skip


def test_only_fp16_logs_a_loss_scale(tiny: ConfigMaker, tmp_path: Path) -> None:
    for precision in ("fp16", "bf16"):
        train(tiny(f"training.precision={precision}", "training.epochs=2"), tmp_path / precision)
        assert all(("loss_scale" in line) == (precision == "fp16") for line in log_lines(tmp_path / precision))
