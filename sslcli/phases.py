"""Times the parts of a step: code marks them with `phase`, and a clock, if one is running, records the marks.

Each moment counts for the innermost open phase, or for the rest, so that the phases add up to the total.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch

#: Time outside every phase.
REST = "rest"
#: In the order of a step. `data`: getting a batch, except waiting for workers; `update`: optimizer and method.
PHASES = ("data", "transfer", "views", "forward", "backward", "update", "waiting", REST)

_NOTHING = nullcontext()
_running: Clock | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """Marks a part of a step, one of `PHASES`; costs almost nothing if no clock is running."""
    return _NOTHING if _running is None else _running.phase(name)


class Clock:
    """Records when phases begin and end, and computes how long each was open: here by the host's clock."""

    def __init__(self) -> None:
        self._open = [REST]
        self._marks: list[tuple[str, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Records what `phase` marks during the block, and the block's beginning and end."""
        global _running
        self._mark()
        before, _running = _running, self
        try:
            yield
        finally:
            _running = before
            self._mark()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One phase; inside another one, it interrupts that one."""
        self._open.append(name)
        self._mark()
        try:
            yield
        finally:
            self._open.pop()
            self._mark()

    def _mark(self) -> None:
        self._marks.append((self._open[-1], self._now()))

    def seconds(self) -> dict[str, float]:
        """Returns the total seconds of each of `PHASES`. On a device this waits for the last mark."""
        spent = dict.fromkeys(PHASES, 0.0)
        for (name, begin), (_, end) in pairwise(self._marks):
            spent[name] += self._between(begin, end)
        return spent

    def _now(self) -> Any:
        return time.perf_counter()

    def _between(self, begin: Any, end: Any) -> float:
        """Seconds from one moment to the next."""
        return end - begin


class CUDAClock(Clock):
    """Records events on a device's current stream; the host waits for them only in `seconds`.

    While the host is ahead, a phase takes as long as its kernels; when the device runs out of work, its idle time
    counts for the phase in which the host was busy. So the phases show what the step waited for.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream = torch.cuda.current_stream(device)  # marks go there, even from phases on other streams

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def clock_for(device: torch.device) -> Clock:
    """Returns the right clock for steps on `device`."""
    return CUDAClock(device) if device.type == "cuda" else Clock()
