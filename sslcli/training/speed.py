"""The speed of training steps: of whole steps, of the same steps on precomputed views, and of each phase of a step.

Session and loop are those of `ssl train`, without callbacks and log lines; nothing is written. The two kinds of steps
alternate in one process, so that changes of the machine's load affect both sides of their ratio.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.config.resolve import RunConfig
from sslcli.contracts.data import SourceBatch
from sslcli.contracts.errors import SslError, UserError
from sslcli.phases import clock_for, phase
from sslcli.runs.directory import RunDirectory

from . import group
from .context import Context
from .loop import LESS_MEMORY, Loop
from .memory import PeakMemory, held_bytes
from .setup import Session, build

log = logging.getLogger(__name__)

#: Steps before the measurement, in which code is compiled, memory and optimizer state are allocated, and workers start.
WARM_UP = 5


@dataclass
class ReadyBatch(SourceBatch):
    """A micro-batch with precomputed views."""

    views: tuple[Tensor, ...] = ()


class SpeedLoop(Loop):
    """The training loop, which also takes precomputed views, and starts over at the end of a short run."""

    def make_views(self, source_batch: SourceBatch) -> list[Tensor]:
        return list(source_batch.views) if isinstance(source_batch, ReadyBatch) else super().make_views(source_batch)

    def step(self) -> None:
        if self.context.progress.step >= self.session.info.total_steps:
            self._set_progress(0)  # schedules have no values beyond their end
        super().step()

    def run(self, batches: Iterator[list[SourceBatch]], steps: int) -> None:
        """Makes steps on these batches, and waits for the device."""
        self.batches = batches
        for _ in range(steps):
            self.step()
        with phase("waiting"):
            if self.session.device.type == "cuda":
                torch.cuda.synchronize(self.session.device)
            elif self.session.device.type == "mps":
                torch.mps.synchronize()

    def ready(self, micro_batches: list[SourceBatch]) -> list[SourceBatch]:
        """Returns the micro-batches with copies of their views, since CUDA graphs overwrite theirs."""
        return [
            ReadyBatch(**vars(batch), views=tuple(view.clone() for view in self.make_views(batch)))
            for batch in micro_batches
        ]


@dataclass(frozen=True)
class Measured:
    """The measurements; times are seconds per step, one entry for each round.

    Attributes:
        seconds: `end_to_end`: of whole steps; `ready`: of the same steps on precomputed views.
        phases: of whole steps, measured separately, since marking the phases takes time too.
        memory: of whole steps: `kind`, the memory that is meant; `peak_bytes`; `held_bytes`, the known parts of the
            peak.
        bad_step: the first step whose loss was not finite, if any.
    """

    seconds: dict[str, list[float]]
    phases: list[dict[str, float]]
    memory: dict[str, Any]
    bad_step: int | None


def measure(config: RunConfig, *, steps: int, rounds: int) -> tuple[Session, Measured]:
    """Builds what `ssl train` would build, and measures its steps.

    Args:
        config: the whole configuration.
        steps: optimizer steps of each kind in a round.
        rounds: how often the kinds alternate.

    Returns:
        the session, with its source closed, and the measurements.

    Raises:
        UserError: the input is wrong, or this is one of several processes.
        SslError: there is not enough memory.
    """
    if group.described():
        raise UserError("bench: measures one process; start it without torchrun")
    session = build(config)
    try:
        session.source.prepare()
        # Nothing is written to this directory, since there are no callbacks and checkpoints.
        loop = SpeedLoop(session, Context(session, RunDirectory(Path())), 0)
        return session, _measure(loop, steps, rounds)
    except torch.OutOfMemoryError as error:
        raise SslError(f"out of memory: {LESS_MEMORY}") from error
    finally:
        session.source.close()


def _measure(loop: SpeedLoop, steps: int, rounds: int) -> Measured:
    session, stream = loop.session, loop.batches
    log.info(f"warming up: {WARM_UP} steps")
    loop.run(stream, WARM_UP)
    peak = PeakMemory(session.device)
    loop.run(stream, 2)  # the second step frees what the first one allocated
    memory = {"kind": peak.kind, "peak_bytes": peak.bytes(), "held_bytes": held_bytes(session)}
    # After memory was measured: `ssl train` holds no second batch of views.
    stored = itertools.repeat(loop.ready(next(stream)))
    loop.run(stored, 2)  # the same code has run already
    kinds = {"end_to_end": stream, "ready": stored}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    phases = []
    for number in range(rounds):
        for name in reversed(kinds) if number % 2 else kinds:
            times[name].append(_seconds(loop, kinds[name], steps))
        phases.append(_phases(loop, stream, steps))
        rate = session.config.training.batch_size / times["end_to_end"][-1]
        log.info(f"round {number + 1} of {rounds}: {rate:,.0f} images/s end to end")
    return Measured(times, phases, memory, loop.meter.bad_step())


def _seconds(loop: SpeedLoop, batches: Iterator[list[SourceBatch]], steps: int) -> float:
    """Wall time of a step, including the device's work.

    The steps before it bring workers to the lead that they have in a long run, whatever was measured before.
    """
    loop.run(batches, loop.session.source.ahead)
    began = time.perf_counter()
    loop.run(batches, steps)
    return (time.perf_counter() - began) / steps


def _phases(loop: SpeedLoop, batches: Iterator[list[SourceBatch]], steps: int) -> dict[str, float]:
    """Seconds per step in each phase."""
    loop.run(batches, loop.session.source.ahead)
    clock = clock_for(loop.session.device)
    with clock.running():
        loop.run(batches, steps)
    return {name: seconds / steps for name, seconds in clock.seconds().items()}
