"""Writes every log line to TensorBoard's event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sslcli.contracts.callback import Callback, Outcome, RunContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Callback):
    """Writes the log lines for TensorBoard.
    `tensorboard --logdir RUN/tensorboard` shows them."""

    writer: SummaryWriter | None = None
    start: int = 0

    def on_start(self, context: RunContext) -> None:
        self.start = context.progress.made

    def on_first_step(self, context: RunContext) -> None:
        if context.is_main:
            self._opened(context)

    def _opened(self, context: RunContext) -> SummaryWriter:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import: not before the first step

            # With `purge_step` TensorBoard hides events after the step from which a resumed run continues.
            purge = self.start + 1 if self.start else None
            self.writer = SummaryWriter(str(context.directory / "tensorboard"), purge_step=purge)
        return self.writer

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        writer = self._opened(context)
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
