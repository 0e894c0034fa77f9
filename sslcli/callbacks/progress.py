"""How a training run is doing: a bar on a terminal; elsewhere a plain line now and then."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import torch
from pydantic import Field
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from sslcli.contracts.callback import Callback, Outcome, Reading, RunContext
from sslcli.contracts.options import FREE, Options
from sslcli.logs import console, duration
from sslcli.memory import readable
from sslcli.runs.metrics import read_metrics

log = logging.getLogger(__name__)

#: Steps of a session after which its time is estimated. It is measured from the second one on, since the first ones
#: compile code, and measure what monitors compare with.
_FIRST, _SECOND, _ESTIMATED = 1, 2, 10
#: Seconds between two measurements of the speed, and how many of them the remaining time is computed from.
_APART, _MARKS = 10.0, 60
#: The least columns for the bar itself.
_BAR = 4


class ProgressOptions(Options):
    """How often the run's values are shown."""

    every_seconds: float = Field(default=10.0, ge=0, json_schema_extra=FREE)
    """Seconds from one plain line to the next where there is no terminal. The bar on a terminal shows new values every
    second, or every this many if that is less."""


class ProgressBar(Callback):
    """Shows epoch, loss, speed, kNN accuracy and the remaining time.

    From the first step on, then by time; with the learning rate and the share of time in which steps wait for data."""

    Options = ProgressOptions
    options: ProgressOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.bar: Progress | None = None
        self.shows = False

    def on_start(self, context: RunContext) -> None:
        self.shows = context.is_main and log.isEnabledFor(logging.INFO)
        if not self.shows:
            return
        self.first = context.progress.step
        self.asked = self.shown = time.monotonic()
        self.arriving: list[Reading] = []
        self.marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        #: Of the last values: time, images, seconds of waiting and of pauses.
        self.before: tuple[float, int, float, float] | None = None
        self.logged_loss: float | None = None
        # Older lines of a resumed run; the values before training are no result of it.
        records = read_metrics(context.directory / "metrics.jsonl") if self.first else []
        self.knn = [record["knn_top1"] for record in records if "knn_top1" in record and record["step"]]
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.fields[before]}", table_column=Column(no_wrap=True)), BarColumn(bar_width=None),
                TextColumn("{task.fields[after]}", table_column=Column(no_wrap=True)),
                console=console, transient=True, expand=True,
            )  # fmt: skip
            self.bar.add_task("train", total=context.last_step, completed=self.first, before="", after="first step")
            self.bar.start()

    def on_step(self, context: RunContext) -> None:
        if not self.shows:
            return
        step, now = context.progress.step - self.first, time.monotonic()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=context.progress.step)
        every = min(1.0, self.options.every_seconds) if self.bar is not None else self.options.every_seconds
        due = step == _FIRST or now - self.asked >= every
        self.asked = now if due else self.asked
        if due or step in (_SECOND, _ESTIMATED):
            reading = context.reading()
            self.arriving += [reading] if reading is not None else []
        # On a GPU the numbers are there a step or two later; the host does not wait for them.
        while self.arriving and (loss := self.arriving[0].loss()) is not None:
            self._arrived(context, self.arriving.pop(0), loss, now)

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        if not self.shows:
            return
        self.logged_loss = record.get("loss", self.logged_loss)
        if "knn_top1" in record and record["step"]:
            self.knn.append(record["knn_top1"])

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _arrived(self, context: RunContext, reading: Reading, loss: float, now: float) -> None:
        """Shows a reading if one is due. What the device had done by then took until now."""
        step = reading.step - self.first
        if step >= _SECOND and (len(self.marks) < 2 or now - self.marks[-1][0] >= _APART):
            self.marks.append((now, reading.step))
        if step == _ESTIMATED:
            self._estimate(context, reading.step, now)
        if step != _FIRST and self.bar is None and now - self.shown < self.options.every_seconds:
            return
        # A log line's loss is that of all processes.
        parts = self._parts(context, reading, loss if self.logged_loss is None else self.logged_loss, now)
        self.shown, self.logged_loss = now, None
        self.before = (now, reading.images, reading.waited, reading.paused)
        epoch, shift = _epoch(context, reading.step), context.progress.shift
        if self.bar is None:
            steps = f"step {reading.step + shift:,}/{context.last_step + shift:,}"
            log.info("  ".join([steps, epoch, *parts.values()]))
        else:
            after = fitting(parts, console.width - len(epoch) - _BAR - 2)
            self.bar.update(self.bar.task_ids[0], before=epoch, after=after)

    def _parts(self, context: RunContext, reading: Reading, loss: float, now: float) -> dict[str, str]:
        parts = {"loss": f"loss {loss:.4f}", "lr": f"lr {reading.lr:.3g}"}
        if self.before is not None:
            began, images, waited, paused = self.before
            seconds = max(now - began - (reading.paused - paused), 1e-9)
            rate = (reading.images - images) / seconds
            parts["rate"] = f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
            parts["waiting"] = f"waiting {min((reading.waited - waited) / seconds, 1):.0%}"
        if self.knn:
            parts["knn"] = f"kNN {self.knn[-1]:.1%} (best {max(self.knn):.1%})"
        left = self._seconds_left(context, reading.step, now)
        if left is not None:
            parts["left"] = f"{duration(left)} left"
        return parts

    def _seconds_left(self, context: RunContext, step: int, now: float) -> float | None:
        """By the speed of the last ten minutes, monitors and saving included."""
        began, first = self.marks[0] if self.marks else (now, step)
        return (context.last_step - step) * (now - began) / (step - first) if step > first else None

    def _estimate(self, context: RunContext, step: int, now: float) -> None:
        left = self._seconds_left(context, step, now)
        if left is not None and step < context.last_step:
            log.info(f"about {duration(left)} left, until {clock(datetime.now(), left)}")
        if context.device.type == "cuda":
            log.info(f"memory: {readable(torch.cuda.max_memory_allocated(context.device))} at the peak so far")


def clock(now: datetime, seconds: float) -> str:
    """Returns the time of day that many seconds from now, with the date if that is another one."""
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"


def fitting(parts: Mapping[str, str], width: int) -> str:
    """Returns the parts of a status that fit into so many columns: the speed is the first to go, then words."""
    kept = dict(parts)
    for dropped in ("rate", None, "lr", "waiting"):
        if len("  ".join(kept.values())) <= width:
            break
        if dropped is None:
            kept = {name: text.replace("waiting", "wait").replace("best ", "") for name, text in kept.items()}
        else:
            kept.pop(dropped, None)
    return "  ".join(kept.values())


def _epoch(context: RunContext, step: int) -> str:
    progress = context.progress
    epochs = progress.total_steps // progress.steps_per_epoch
    return f"epoch {step / progress.steps_per_epoch:.1f}/{epochs}"
