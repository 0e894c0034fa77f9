"""Where a step's time goes: its parts are marked with `phase`, and a clock, where one runs, reads the marks.

Each moment belongs to the innermost phase that is open, or to the rest, so that the phases add up to the whole.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch

#: What no phase covers.
REST = "rest"
#: In the order of a step. `data`: getting a batch, without the wait for workers; `update`: optimizer and method.
PHASES = ("data", "transfer", "views", "forward", "backward", "update", "waiting", REST)

_NOTHING = nullcontext()
_running: Clock | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """Marks a part of a step; costs next to nothing while no clock runs.

    Args:
        name: one of `PHASES`.
    """
    return _NOTHING if _running is None else _running.phase(name)


class Clock(ABC):
    """Notes when phases begin and end, and tells afterward how long each was open."""

    def __init__(self) -> None:
        self._open = [REST]
        self._marks: list[tuple[str, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Notes what `phase` marks while the block runs, and the block's beginning and end."""
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
        """One phase; may stand within another one, which does not count meanwhile."""
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
        """Returns how long each of `PHASES` was open, all in all. On a device this waits for the last mark."""
        self._wait(self._marks[-1][1])
        spent = dict.fromkeys(PHASES, 0.0)
        for (name, begin), (_, end) in pairwise(self._marks):
            spent[name] += self._between(begin, end)
        return spent

    @abstractmethod
    def _now(self) -> Any: ...

    @abstractmethod
    def _between(self, begin: Any, end: Any) -> float: ...

    @abstractmethod
    def _wait(self, mark: Any) -> None: ...


class HostClock(Clock):
    """Reads the time of the process: right where the process itself computes."""

    def _now(self) -> float:
        return time.perf_counter()

    def _between(self, begin: float, end: float) -> float:
        return end - begin

    def _wait(self, mark: float) -> None:
        pass


class CUDAClock(Clock):
    """Records events on the current stream of a device; the host never waits for them before `seconds`.

    Where the host is ahead, a phase is as long as its kernels take; where the device has run out of work, the phase in
    which the host was busy meanwhile gets that time. So the phases tell what the step waited for.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream = torch.cuda.current_stream(device)  # marks belong there, whichever stream a phase works on

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000

    def _wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


def clock_for(device: torch.device) -> Clock:
    """Returns the clock that suits the device that steps run on."""
    return CUDAClock(device) if device.type == "cuda" else HostClock()
