"""What limits a run's speed: whole steps beside the same steps on views made before, and each phase's part of a step.

The session and the loop are those of `ssl train`, without callbacks and log lines; nothing is written. The kinds are
timed in turns in one process, so that a machine's moods meet both sides of a ratio.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sslcli.config.resolve import RunConfig
from sslcli.contracts.data import SourceBatch
from sslcli.contracts.errors import SslError, UserError
from sslcli.phases import clock_for, phase
from sslcli.runs.directory import RunDirectory

from . import group
from .context import Context
from .loop import Loop
from .memory import PeakMemory, held_bytes
from .setup import Session, build

log = logging.getLogger(__name__)

#: Steps before anything is measured: code is compiled, memory and the optimizer's state exist, workers run.
WARM_UP = 5
#: Steps on ready views before these are measured; the same code by then.
WARM_UP_READY = 2
#: Steps over which memory peaks: the second one frees what the first one made.
MEMORY_STEPS = 2


@dataclass
class ReadyBatch(SourceBatch):
    """A micro-batch with its views made before."""

    views: tuple[Tensor, ...] = ()


class BenchLoop(Loop):
    """The loop of a training that also takes ready views, and begins again where a short run ends."""

    def make_views(self, source_batch: SourceBatch) -> list[Tensor]:
        return list(source_batch.views) if isinstance(source_batch, ReadyBatch) else super().make_views(source_batch)

    def step(self) -> None:
        if self.context.progress.step >= self.session.info.total_steps:
            self._set_progress(0)  # schedules have no values beyond their end
        super().step()

    def ready(self, micro_batches: list[SourceBatch]) -> list[SourceBatch]:
        """Returns the micro-batches with copies of their views: what CUDA graphs made is overwritten later."""
        return [
            ReadyBatch(**vars(batch), views=tuple(view.clone() for view in self.make_views(batch)))
            for batch in micro_batches
        ]


class Spread(NamedTuple):
    """A median over rounds, with the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Measured:
    """What was measured; all times are seconds a step, one entry for each round.

    Attributes:
        end_to_end: whole steps.
        ready: the same steps on views made before.
        phases: of whole steps, measured apart from those: the marks take their time too.
        peak_bytes: memory at its peak in whole steps.
        memory_kind: what the peak is of.
        held_bytes: what of it is known: images, parameters and buffers, optimizer state.
        bad_step: the first step whose loss was not finite, if any.
    """

    end_to_end: list[float]
    ready: list[float]
    phases: list[dict[str, float]]
    peak_bytes: int
    memory_kind: str
    held_bytes: dict[str, int]
    bad_step: int | None

    @property
    def ratio(self) -> Spread:
        """End-to-end speed over that of the ready steps, of the same round each."""
        return Spread.of([ready / whole for whole, ready in zip(self.end_to_end, self.ready, strict=True)])

    @property
    def typical(self) -> dict[str, float]:
        """The phases of the median round, so that they add up to a step that was made."""
        return sorted(self.phases, key=lambda phases: sum(phases.values()))[(len(self.phases) - 1) // 2]


def bench(config: RunConfig, *, steps: int, rounds: int) -> tuple[Session, Measured]:
    """Builds what a training would build, and times its steps.

    Args:
        config: the whole configuration.
        steps: optimizer steps of each kind in a round.
        rounds: how often the kinds take turns.

    Returns:
        the session, its source closed, and what was measured.

    Raises:
        UserError: something about the input; or this process is one of several.
        SslError: there is not enough memory.
    """
    if group.described():
        raise UserError("bench: measures one process; start it without torchrun")
    session = build(config)
    try:
        session.source.prepare()
        # The directory is a name that nobody writes to: without callbacks and saves nothing asks for it.
        loop = BenchLoop(session, Context(session, RunDirectory(Path())), 0)
        return session, _measure(loop, steps, rounds)
    except torch.OutOfMemoryError as error:
        raise SslError(
            "out of memory: try a smaller training.batch_size, or the same with training.accumulate=2"
        ) from error
    finally:
        session.source.close()


def _measure(loop: BenchLoop, steps: int, rounds: int) -> Measured:
    session, stream = loop.session, loop.batches
    log.info(f"warming up: {WARM_UP} steps")
    _run(loop, stream, WARM_UP)
    _synchronize(session.device)
    peak = PeakMemory(session.device)
    _run(loop, stream, MEMORY_STEPS)
    _synchronize(session.device)
    peak_bytes = peak.bytes()
    # Made after memory was measured: a training has no second batch of views.
    stored = itertools.repeat(loop.ready(next(stream)))
    _run(loop, stored, WARM_UP_READY)
    times: dict[str, list[float]] = {"whole": [], "ready": []}
    phases = []
    for number in range(rounds):
        kinds = [("whole", stream), ("ready", stored)]
        for kind, batches in reversed(kinds) if number % 2 else kinds:
            times[kind].append(_seconds(loop, batches, steps))
        phases.append(_phases(loop, stream, steps))
        rate = session.config.training.batch_size / times["whole"][-1]
        log.info(f"round {number + 1} of {rounds}: {rate:,.0f} images/s end to end")
    return Measured(
        times["whole"], times["ready"], phases, peak_bytes, peak.kind, held_bytes(session), loop.meter.bad_step()
    )


def _run(loop: Loop, batches: Iterator[list[SourceBatch]], steps: int) -> None:
    loop.batches = batches
    for _ in range(steps):
        loop.step()


def _settle(loop: Loop, batches: Iterator[list[SourceBatch]]) -> None:
    """Makes the steps after which workers are as far ahead as these steps let them be, whatever went before."""
    _run(loop, batches, loop.session.source.ahead)
    _synchronize(loop.session.device)


def _seconds(loop: Loop, batches: Iterator[list[SourceBatch]], steps: int) -> float:
    """Wall time of a step, the device's part included."""
    _settle(loop, batches)
    began = time.perf_counter()
    _run(loop, batches, steps)
    _synchronize(loop.session.device)
    return (time.perf_counter() - began) / steps


def _phases(loop: Loop, batches: Iterator[list[SourceBatch]], steps: int) -> dict[str, float]:
    """Seconds of a step in each phase."""
    _settle(loop, batches)
    clock = clock_for(loop.session.device)
    with clock.running():
        _run(loop, batches, steps)
        with phase("waiting"):
            _synchronize(loop.session.device)
    return {name: seconds / steps for name, seconds in clock.seconds().items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
