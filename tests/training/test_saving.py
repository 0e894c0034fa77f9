"""Checkpoints by time: when, which are kept, that resuming stays exact, and that all processes save after one step."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY, ConfigMaker
from run_helpers import assert_same_end

from sslcli.config.schema import CheckpointOptions
from sslcli.runs.checkpoint import CheckpointWriter, list_checkpoints, step_of
from sslcli.training import saving
from sslcli.training.saving import SavePlan
from sslcli.training.train import train


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run / "checkpoints")]


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: 60 * now[0]))
    return now


def test_a_checkpoint_is_due_a_quarter_of_an_hour_after_the_last_one(minutes: list[float]) -> None:
    plan = SavePlan(CheckpointOptions(), 4, by_time=True)
    due = []
    for minutes[0] in (14.9, 15.0, 16.0):
        due.append(plan.is_overdue())
    assert due == [False, True, True]
    plan.restart()
    assert not plan.is_overdue()
    minutes[0] += 15
    assert plan.is_overdue()
    assert not SavePlan(CheckpointOptions(every_minutes=None), 4, by_time=True).is_overdue()
    other = SavePlan(CheckpointOptions(every_minutes=0.5), 4, by_time=False)
    minutes[0] += 15
    assert not other.is_overdue()


def test_a_run_saves_by_time_and_resumes_exactly(
    tiny: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that advances by a minute whenever it is looked at, which is once a step."""
    ticks = count()
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(ticks)))
    saved: list[int] = []
    save = CheckpointWriter.save
    monkeypatch.setattr(
        CheckpointWriter, "save", lambda self, step, *rest: (saved.append(step), save(self, step, *rest))
    )
    by_time = ("checkpoints={every_epochs: null, every_minutes: 3}", "training.epochs=3")
    train(tiny(*by_time, "training.max_steps=7"), tmp_path / "parts")
    assert saved == [3, 6, 7]
    train(tiny(*by_time), tmp_path / "parts", resume=True)
    assert saved == [3, 6, 7, 10, 12]
    train(tiny("training.epochs=3", "checkpoints={every_epochs: null, every_minutes: null}"), tmp_path / "whole")
    assert steps(tmp_path / "whole") == [12]
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_what_is_saved_by_time_does_not_push_out_what_is_saved_by_epoch(tmp_path: Path) -> None:
    plan = SavePlan(CheckpointOptions(every_epochs=1), 10, by_time=True)
    (tmp_path / "checkpoints").mkdir()
    writer = CheckpointWriter(tmp_path / "checkpoints", 2, plan.regular)
    found = []
    for step in (3, 7, 10, 13, 17, 20, 23, 30, 31):
        writer.save(step, {"x": torch.zeros(2)}, {"step": step})
        writer.join()
        found.append(steps(tmp_path))
    writer.close()
    assert found == [[3], [7, 3], [10, 7], [13, 10], [17, 10], [20, 10], [23, 20, 10], [30, 20], [31, 30, 20]]
    assert SavePlan(CheckpointOptions(every_epochs=None), 10, by_time=True).regular is None


@pytest.mark.slow
def test_two_processes_save_after_the_same_steps(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({**TINY, "checkpoints": {"every_epochs": None, "every_minutes": 1e-9}})
    )
    words = ["train", "c.yaml", "--devices", "2", "--output", "run", "training.max_steps=5", "-v"]
    done = subprocess.run(
        [sys.executable, "-m", "sslcli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote run/checkpoints/") == 5
    assert "2 processes, this one on cpu" in done.stderr
    assert done.stdout.splitlines()[-1] == "ssl train run training.max_steps=null --devices 2 --resume"
