"""What ends a run that has diverged, before it saves anything that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from sslcli import distributed
from sslcli.contracts.errors import SslError
from sslcli.runs.finite import first_non_finite

from .meter import Meter
from .scaler import MOST_SKIPPED
from .setup import Session
from .state import CALLBACK


class RunFailed(SslError):
    """The run cannot continue; the message says at which step, what is saved, and what to try."""

    shared = True  # all processes look at the same numbers


class Checks:
    """Of the losses that a meter has taken, and of what is about to be saved.

    Attributes:
        last_good: returns the newest good checkpoint of this run, for messages.
    """

    def __init__(self, session: Session, meter: Meter) -> None:
        self.session, self.meter = session, meter
        self.last_good: Callable[[], Path | None] = lambda: None

    def check_loss(self) -> None:
        """Raises RunFailed if the loss of any step was not finite, or no update is possible (waits for the device)."""
        skipped = distributed.all_reduce_max(self.session.scaler.most_in_a_row())
        if skipped >= MOST_SKIPPED:
            raise RunFailed(
                f"{skipped} updates in a row were skipped since gradients were not finite in fp16, whatever the loss "
                f"scale; {self._saved()}: try training.precision=bf16 or fp32, or a smaller optimizer.lr"
            )
        bad = self.meter.bad_step()
        if bad is not None:
            step = bad + self.session.shift
            raise RunFailed(
                f"the loss was not finite in step {step} ({self._rate(step)}); {self._saved()}: {self._advice()}"
            )

    def check_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Raises RunFailed, on all processes, if something that is about to be saved is not finite.

        Args:
            tensors: of a checkpoint, by name; those of the main process count (waits for the device).
            step: after which one, of those made.
        """
        bad = distributed.from_main(first_non_finite(tensors))
        if bad is None:
            return
        advice = self._advice()
        if bad.startswith(CALLBACK):
            advice = f"turn it off (callbacks.{bad.split('.')[1]}=null), or {advice}"
        raise RunFailed(f"after step {step} {bad} is not finite ({self._rate(step)}); {self._saved()}: {advice}")

    def _rate(self, step: int) -> str:
        return (
            f"lr {self.session.schedule(step - self.session.shift - 1):.3g}, {self.session.config.training.precision}"
        )

    def _saved(self) -> str:
        path = distributed.from_main(self.last_good())  # which alone writes
        return "nothing was saved before" if path is None else f"the last good checkpoint is {path}"

    def _advice(self) -> str:
        precise = "training.precision=fp32, " if self.session.config.training.precision != "fp32" else ""
        return f"try a smaller optimizer.lr, a longer warm-up, {precise}or training.clip.norm=1.0"
