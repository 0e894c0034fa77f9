"""What is shown of a run while it trains: from the first step on, then by time, without a wait for the device."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from sslcli.callbacks import progress
from sslcli.callbacks.progress import ProgressBar, ProgressOptions, clock, fitting
from sslcli.contracts.callback import Reading
from sslcli.contracts.method import Progress
from sslcli.logs import duration


class FakeTraining:
    """A run whose steps take a second each by a clock of its own; 8 images a step, 10 steps an epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, *, behind: int = 0, first: int = 0) -> None:
        self.now, self.behind, self.first = 0.0, behind, first
        self.asked: list[int] = []
        self.context: Any = SimpleNamespace(
            is_main=True, device=torch.device("cpu"), last_step=30_000, directory=directory, reading=self.reading
        )
        self.at(first)
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def at(self, step: int) -> None:
        self.step = step
        self.context.progress = Progress(step, 30_000, 10)

    def reading(self) -> Reading:
        """Its loss arrives `behind` steps later."""
        step = self.step
        self.asked.append(step)
        arrived: Callable[[], float | None] = lambda: 5 - step / 100 if self.step >= step + self.behind else None  # noqa: E731
        return Reading(step, 0.1, 8 * (step - self.first), 0.25 * (step - self.first), 0.0, arrived)

    def run(self, callback: ProgressBar, steps: int, records: dict[int, dict[str, float]] | None = None) -> None:
        callback.on_start(self.context)
        for step in range(self.first + 1, self.first + steps + 1):
            self.now += 1.0
            self.at(step)
            callback.on_step(self.context)
            for record in [(records or {}).get(step)]:
                if record is not None:
                    callback.on_log(self.context, {"step": step, **record})


def test_lines_come_with_the_first_step_and_then_by_time(monkeypatch, tmp_path, messages) -> None:
    training = FakeTraining(monkeypatch, tmp_path)
    training.run(ProgressBar(ProgressOptions()), 25, {20: {"loss": 9.0}, 21: {"knn_top1": 0.5}, 22: {"knn_top1": 0.25}})
    assert training.asked == [1, 2, 10, 11, 21]
    assert messages[0] == "step 1/30,000  epoch 0.1/3000  loss 4.9900  lr 0.1"
    assert messages[1].startswith("about 8 h 19 min left, until ")
    assert messages[2:] == [
        "step 11/30,000  epoch 1.1/3000  loss 4.8900  lr 0.1  8 images/s  waiting 25%  8 h 19 min left",
        "step 21/30,000  epoch 2.1/3000  loss 9.0000  lr 0.1  8 images/s  waiting 25%  8 h 19 min left",
    ]


def test_the_last_and_the_best_accuracy_are_shown_and_the_loss_of_the_log_line(monkeypatch, tmp_path, messages) -> None:
    training = FakeTraining(monkeypatch, tmp_path)
    records: dict[int, dict[str, float]] = {3: {"knn_top1": 0.5}, 4: {"knn_top1": 0.25}, 9: {"loss": 2.0}}
    training.run(ProgressBar(ProgressOptions()), 11, records)
    assert "loss 2.0000" in messages[-1]
    assert "kNN 25.0% (best 50.0%)" in messages[-1]


def test_values_that_the_device_has_not_sent_yet_are_shown_when_they_are_there(monkeypatch, tmp_path, messages) -> None:
    training = FakeTraining(monkeypatch, tmp_path, behind=2)
    training.run(ProgressBar(ProgressOptions()), 12)
    assert training.asked == [1, 2, 10, 11]
    assert messages[0].startswith("step 1/30,000  epoch 0.1/3000  loss 4.9900")
    assert messages[1].startswith("about 8 h 19 min left")


def test_a_resumed_run_knows_its_best_accuracy_but_not_that_of_the_untrained_network(monkeypatch, tmp_path, messages):
    records = [{"step": 0, "knn_top1": 0.9}, {"step": 10, "knn_top1": 0.5}, {"step": 20, "knn_top1": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    training = FakeTraining(monkeypatch, tmp_path, first=20)
    training.run(ProgressBar(ProgressOptions()), 11)
    assert messages[0] == "step 21/30,000  epoch 2.1/3000  loss 4.7900  lr 0.1  kNN 40.0% (best 50.0%)"
    assert messages[1].startswith("about 8 h 19 min left, until ")


@pytest.mark.parametrize(("width", "shown"), [(80, False), (200, True)])
def test_the_bar_fits_into_the_terminal(width: int, shown: bool, monkeypatch, tmp_path, messages) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=width, color_system=None))
    training = FakeTraining(monkeypatch, tmp_path)
    bar = ProgressBar(ProgressOptions())
    training.run(bar, 15, {3: {"knn_top1": 0.5}})
    assert bar.bar is not None
    bar.bar.refresh()
    line = screen.getvalue().rsplit("epoch", 1)[1]
    assert "1.5/3000" in line
    assert "loss 4.8500" in line
    assert "kNN 50.0% (" in line
    assert "8 h 19 min left" in line
    assert ("images/s" in line) == shown
    assert len("epoch" + line.rstrip()) <= width
    bar.on_end(training.context, "done")
    assert messages[0].startswith("about 8 h 19 min left")


def test_parts_go_in_order_until_the_rest_fits() -> None:
    parts = {"loss": "loss 1.0000", "lr": "lr 0.1", "rate": "8 images/s", "waiting": "waiting 3%",
             "knn": "kNN 45.2% (best 47.0%)", "left": "1 h 2 min left"}  # fmt: skip
    assert fitting(parts, 200).split("  ") == list(parts.values())
    assert fitting(parts, 72) == "loss 1.0000  lr 0.1  waiting 3%  kNN 45.2% (best 47.0%)  1 h 2 min left"
    assert fitting(parts, 66) == "loss 1.0000  lr 0.1  wait 3%  kNN 45.2% (47.0%)  1 h 2 min left"
    assert fitting(parts, 50) == "loss 1.0000  kNN 45.2% (47.0%)  1 h 2 min left"


def test_times_are_told_as_people_do() -> None:
    told = [duration(seconds) for seconds in (0.2, 59.4, 60, 725, 12_000, 90_000, 86_400 * 3 + 59)]
    assert told == ["0 s", "59 s", "1 min", "12 min 5 s", "3 h 20 min", "1 d 1 h", "3 d"]
    now = datetime(2026, 11, 28, 15, 20)
    assert [clock(now, hours * 3600) for hours in (3 + 1 / 3, 10)] == ["18:40", "2026-11-29 01:20"]
