"""The progress bar of a training run; without a terminal, a plain line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.contracts.options import FREE, Options
from sslcli.logs import console

log = logging.getLogger(__name__)


class ProgressOptions(Options):
    """How often a plain progress line is written if there is no terminal."""

    every_seconds: float = Field(default=15.0, ge=0, json_schema_extra=FREE)
    """Minimum number of seconds between two plain lines."""


class ProgressBar(Callback):
    """Shows steps, loss, speed and the remaining time."""

    Options = ProgressOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.bar: Progress | None = None
        self.last_line = float("-inf")

    def on_start(self, context: RunContext) -> None:
        if not (context.is_main and console.is_terminal and log.isEnabledFor(logging.INFO)):
            return
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"), TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.bar.add_task("train", total=context.last_step, epoch=context.progress.epoch, status="")
        self.bar.start()
        self.on_step(context)

    def on_step(self, context: RunContext) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=context.progress.step, epoch=context.progress.epoch)

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        if "loss" not in record:
            return
        status = f"loss {record['loss']:.4f}  {record['images_per_second']:,.0f} images/s"
        now, progress = time.monotonic(), context.progress
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], status=status)
        elif progress.step == context.last_step or now - self.last_line >= self.options.every_seconds:
            self.last_line = now
            log.info(f"step {progress.step}/{context.last_step}  epoch {progress.epoch:.1f}  {status}")

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
