"""The speed of training steps: of whole steps, of the same steps on prepared views, and of each phase of a step.

Session and loop are those of `ssl train`, without callbacks and log lines; nothing is written. The two kinds of steps
alternate in one process, so that changes of the machine's load affect both sides of their ratio.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from torch import Tensor

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import UserError
from sslcli.contracts.source import SourceBatch
from sslcli.memory import out_of_memory
from sslcli.phases import clock_for, phase
from sslcli.runs.arithmetic import settings_restored
from sslcli.runs.directory import RunDirectory
from sslcli.runs.environment import describe_environment

from . import group
from .context import Context
from .interrupt import Interrupt
from .loop import Loop
from .memory import PeakMemory, held_bytes, less_memory
from .setup import Session, build, plan
from .trial import check_micro_batch

log = logging.getLogger(__name__)

#: Steps before the measurement, in which code is compiled, memory and optimizer state are allocated, and workers start.
WARM_UP = 5


@dataclass
class ReadyBatch(SourceBatch):
    """A micro-batch with prepared views."""

    views: tuple[Tensor, ...] = ()


class Ended(Exception):
    """A signal came between two steps."""


class SpeedLoop(Loop):
    """The training loop, which also takes prepared views, and starts over at the end of a short run."""

    interrupt = Interrupt()

    def make_views(self, source_batch: SourceBatch, step: int = 0) -> list[Tensor]:
        if isinstance(source_batch, ReadyBatch):
            return list(source_batch.views)
        return super().make_views(source_batch, step)

    def step(self) -> None:
        if self.context.progress.step >= self.session.info.total_steps:
            self._set_progress(0)  # schedules have no values beyond their end
        super().step()

    def run(self, batches: Iterator[list[SourceBatch]], steps: int) -> None:
        """Runs steps on these batches, and waits for the device; raises Ended after a signal."""
        self.batches = batches
        for _ in range(steps):
            if self.interrupt.number is not None:
                raise Ended
            self.step()
        with phase("waiting"):
            if self.session.device.type == "cuda":
                torch.cuda.synchronize(self.session.device)
            elif self.session.device.type == "mps":
                torch.mps.synchronize()

    def ready(self, micro_batches: list[SourceBatch]) -> list[SourceBatch]:
        """Returns the micro-batches with copies of their views, since CUDA graphs overwrite theirs."""
        # `deepcopy` keeps views that follow each other in memory as they are (`modules.as_one_batch`).
        return [
            ReadyBatch(**vars(batch), views=tuple(copy.deepcopy(self.make_views(batch)))) for batch in micro_batches
        ]


@dataclass
class Measured:
    """The measurements; times are seconds per step, one entry for each round."""

    seconds: dict[str, list[float]]  #: `end_to_end`: of whole steps; `ready`: of the same on prepared views
    phases: list[dict[str, float]]  #: of whole steps, measured separately, since marking the phases takes time too
    memory: dict[str, Any]  #: of whole steps: `kind`, `peak_bytes`, and `held_bytes`, the known parts of the peak
    bad_step: int | None  #: the first step whose loss was not finite
    signal: int | None = None  #: number of the one that ended the measurement
    ended: str | None = None  #: why there are fewer rounds than asked for


@settings_restored()
def measure(config: RunConfig, *, steps: int, rounds: int, minutes: float | None = None) -> tuple[Session, Measured]:
    """Builds what `ssl train` would build, and measures `steps` optimizer steps of each kind in every round.

    After the first round none begins that would not end within `minutes` of this call, as long as the one before it
    took. SIGINT, SIGTERM and SIGHUP end it after a step.

    Returns:
        the session, with its source closed, and the measurements of the rounds that are complete, perhaps none.

    Raises:
        UserError: the input is invalid, or this is one of several processes.
        OutOfMemory: there is not enough memory.
    """
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if group.described():
        raise UserError("bench: measures a single process; run it without torchrun")
    # Every measured step has the whole batch.
    session = build(dataclasses.replace(config, training=config.training.model_copy(update={"drop_last": True})))
    check_micro_batch(session)
    if session.views.later:
        log.info("views change in this run: those of its first phase are measured")
        session.views.later = []
    try:
        with out_of_memory("in a step", lambda: less_memory(config)):
            session.source.prepare()
            # Nothing is written to this directory, since there are no callbacks or checkpoints.
            loop = SpeedLoop(session, Context(session, RunDirectory(Path())), 0)
            with Interrupt() as loop.interrupt:
                return session, _measure(loop, steps, rounds, end)
    finally:
        session.source.close()


def _measure(loop: SpeedLoop, steps: int, rounds: int, end: float) -> Measured:
    """Measures rounds until there are enough, the time is used up, or a signal came."""
    found = Measured({"end_to_end": [], "ready": []}, [], {}, None)
    try:
        _measure_rounds(loop, steps, rounds, end, found)
    except Ended:
        found.signal = loop.interrupt.number
        assert found.signal is not None
        found.ended = signal.Signals(found.signal).name
    if found.ended is not None:
        log.info(f"ended by {found.ended} after {len(found.phases)} of {rounds} rounds")
    found.bad_step = loop.meter.bad_step()
    return found


def _measure_rounds(loop: SpeedLoop, steps: int, rounds: int, end: float, found: Measured) -> None:
    session, stream = loop.session, loop.batches
    log.info(f"warming up: {WARM_UP} steps")
    loop.run(stream, WARM_UP)
    peak = PeakMemory(session.device)
    loop.run(stream, 2)  # the second step frees what the first one allocated
    found.memory = {"kind": peak.kind, "peak_bytes": peak.bytes(), "held_bytes": held_bytes(session)}
    # After memory was measured: `ssl train` holds no second batch of views.
    stored = itertools.repeat(loop.ready(next(stream)))
    loop.run(stored, 2)  # the same code has run already
    kinds = {"end_to_end": stream, "ready": stored}
    for number in range(rounds):
        began = time.monotonic()
        times = {name: _seconds(loop, kinds[name], steps) for name in (reversed(kinds) if number % 2 else kinds)}
        phases = _phases(loop, stream, steps)
        for name, seconds in times.items():  # of complete rounds only
            found.seconds[name].append(seconds)
        found.phases.append(phases)
        rate = session.config.training.batch_size / times["end_to_end"]
        log.info(f"round {number + 1} of {rounds}: {rate:,.0f} images/s end to end")
        now = time.monotonic()
        if number + 1 < rounds and now + (now - began) > end:
            found.ended = "--minutes"
            return


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


def report(session: Session, measured: Measured, steps: int, command: list[str]) -> dict[str, Any]:
    """Returns all results: speeds, each round's times, the resolved config, machine, versions and command."""
    batch = session.config.training.batch_size
    # Of the median round, so that the phases add up to the time of an actual step.
    typical = sorted(measured.phases, key=lambda phases: sum(phases.values()))[(len(measured.phases) - 1) // 2]
    total = sum(typical.values())
    phases = {}
    for name, seconds in typical.items():
        times = [1000 * each[name] for each in measured.phases]
        phases[name] = {
            "ms": _rounded(1000 * seconds), "share": _rounded(seconds / total),
            "ms_min": _rounded(min(times)), "ms_max": _rounded(max(times)),
        }  # fmt: skip
    # Of the two speeds in the same round.
    ratios = [ready / whole for whole, ready in zip(*measured.seconds.values(), strict=True)]
    return {
        **describe_environment(command),
        "config": session.config.plain(),
        "plan": plan(session),
        "steps": steps,
        "rounds": len(measured.phases),
        "ended_by": measured.ended,
        "images_per_second": {
            name: _spread([batch / each for each in times]) for name, times in measured.seconds.items()
        },
        "ratio": _spread(ratios),
        "phases": phases,
        "phases_clock": "CUDA events" if session.device.type == "cuda" else "host",
        "memory": measured.memory,
        "first_step_with_bad_loss": measured.bad_step,
        "seconds_per_step": {**measured.seconds, "phases": measured.phases},
    }


def tables(report: dict[str, Any]) -> Group:
    """Returns phases, speed and memory of a report as tables."""
    phases = _table("phase", "ms per step", "share", "min", "max")
    rows = {name: tuple(phase.values()) for name, phase in report["phases"].items()}
    rounds = [1000 * sum(each.values()) for each in report["seconds_per_step"]["phases"]]
    rows["step"] = (sum(milliseconds for milliseconds, *_ in rows.values()), 1.0, min(rounds), max(rounds))
    for name, (milliseconds, share, *extremes) in rows.items():
        if name == "step":
            phases.add_section()
        shown = "optimizer and method update" if name == "update" else name
        phases.add_row(shown, f"{milliseconds:,.2f}", f"{share:.1%}", *(f"{value:,.2f}" for value in extremes))
    speed = _table("images/s", *report["ratio"])
    for name, key in (("end to end", "end_to_end"), ("on prepared views", "ready")):
        speed.add_row(name, *(f"{value:,.1f}" for value in report["images_per_second"][key].values()))
    speed.add_row("ratio", *(f"{value:.3f}" for value in report["ratio"].values()))
    memory, found = _table("memory", "MiB", "share"), report["memory"]
    for name, count in {f"peak, {found['kind']}": found["peak_bytes"], **found["held_bytes"]}.items():
        memory.add_row(name, f"{count / 2**20:,.1f}", f"{count / found['peak_bytes']:.1%}")
    return Group(phases, speed, memory)


def headline(session: Session) -> str:
    """Returns what was measured, in a line."""
    config = session.config
    training = config.training
    device = torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else session.device.type
    micro = f" in {training.accumulate} micro-batches" if training.accumulate > 1 else ""
    return (
        f"{config.method.name}, {config.backbone.name}, {config.data.name}; batch of {training.batch_size}{micro}, "
        f"views: {session.views}; {device}, {training.precision}, compiled: {training.compile}, "
        f"{torch.get_num_threads()} thread(s)"
    )


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _spread(values: list[float]) -> dict[str, float]:
    """The median over rounds, and the extremes."""
    return {
        "median": _rounded(statistics.median(values)), "min": _rounded(min(values)), "max": _rounded(max(values)),
    }  # fmt: skip


def _rounded(value: float) -> float:
    """Five digits: more than the clocks are accurate to."""
    return float(f"{value:.5g}")
