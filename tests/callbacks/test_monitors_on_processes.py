"""Monitors of a run on several processes: each computes its share, and what is logged is what one process logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_helpers import FakeRun, InMemory, trained
from process_group import in_group
from run_helpers import method_config

import sslcli.callbacks.shared_features as shared
from sslcli import distributed
from sslcli.callbacks.knn import KNNMonitor, KNNMonitorOptions
from sslcli.callbacks.logistic import LogisticMonitor, LogisticMonitorOptions
from sslcli.training.train import train

MONITORS = {KNNMonitor: KNNMonitorOptions, LogisticMonitor: LogisticMonitorOptions}
#: Of the log lines that are the same, but for rounding, on any number of processes.
MEASURED = ("knn_top1", "knn_top1_pixels", "logistic_top1", "probe_top1", "probe_eval_top1", "probe_loss")


def measured(*, kept: bool) -> tuple[list[tuple[int, dict[str, float]]], int]:
    """What the monitors log of three blocks, some images of which cannot be read; and how many images were encoded."""
    labels = torch.arange(600) % 3
    train_part, test = InMemory(labels, 600, resident=False), InMemory(labels, 600, split="test", resident=False)
    train_part.damaged, test.damaged = {5, 300}, {599}
    context = FakeRun(train_part, test, trained().backbone)
    context.is_main = distributed.rank() == 0
    seen = [0]
    context.backbone.register_forward_pre_hook(lambda module, inputs: seen.__setitem__(0, seen[0] + len(inputs[0])))
    shared.KEPT = 384 << 20 if kept else 0
    monitors = [cls(options(every_epochs=1)) for cls, options in MONITORS.items()]
    for monitor in monitors:
        monitor.on_start(context)
    for monitor in monitors:
        monitor.on_first_step(context.at(1))
    for monitor in monitors:
        monitor.on_epoch(context.at(4))
    return context.logged, seen[0]


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_each_process_encodes_its_blocks_and_the_main_one_logs_what_one_does(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "KEPT", shared.KEPT)
    expected, images = measured(kept=kept)
    (logged, own), (nothing, others) = in_group(2, lambda rank: measured(kept=kept), tmp_path)
    assert logged == expected
    assert nothing == []
    assert len(logged) == 3
    assert own + others == images
    assert own > others > 0


@pytest.mark.slow
def test_a_run_on_two_processes_logs_what_one_process_does(tmp_path):
    words = [
        f"callbacks={{{', '.join(f'{name}: {{every_epochs: 1}}' for name in ('knn', 'online_probe', 'logistic'))}}}"
    ]

    def member(rank: int) -> None:
        train(method_config("simsiam", *words), tmp_path / "two")

    in_group(2, member, tmp_path / "group")
    train(method_config("simsiam", *words), tmp_path / "one")
    runs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    found = set()
    for one, two in zip(*runs, strict=True):
        assert one.keys() == two.keys()
        for name in (*MEASURED, "feature_std", "feature_rank", "loss"):
            if name in one:
                found.add(name)
                assert two[name] == pytest.approx(one[name], rel=0.02, abs=0.04), (name, one["step"])
    assert {"knn_top1", "logistic_top1", "probe_eval_top1", "feature_std", "feature_rank"} <= found


def test_the_helper_reports_what_a_process_prints(tmp_path):
    def fails(rank: int) -> None:
        raise ValueError(f"process {rank} is wrong")

    with pytest.raises(AssertionError, match="process 1 is wrong"):
        in_group(2, fails, Path(tmp_path))
