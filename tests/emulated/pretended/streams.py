"""Streams, events and memory of a pretended device: what has certainly happened before what.

Each stream counts its work; a stream, an event or the host knows up to which count of every stream it has waited. So a
tensor used on a stream that did not wait for the one that wrote it, memory given back while another stream may still
use it, and a copy read by the host before it has arrived are all found, although everything is computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .ledger import ledger

Known = dict["Stream", int]
#: Bytes of a pretended H100.
TOTAL = 80 << 30
_ROUNDED = 512  # as torch's allocator does


def _learn(known: Known, more: Known) -> None:
    for stream, count in more.items():
        known[stream] = max(known.get(stream, 0), count)


class Stream:
    """Stands for `torch.cuda.Stream`."""

    cuda_stream = stream_id = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", 0)
        self.count = 0
        self.known: Known = {}

    def work(self) -> int:
        """Adds an operation, which comes after all that the host has waited for; returns its number."""
        self.count += 1
        _learn(self.known, state.host)
        self.known[self] = self.count
        return self.count

    def waited_for(self, stream: Stream, count: int) -> bool:
        return stream is self or max(self.known.get(stream, 0), state.host.get(stream, 0)) >= count

    def wait_stream(self, other: Stream) -> None:
        _learn(self.known, other.known)

    def wait_event(self, event: Event) -> None:
        _learn(self.known, event.known)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        ledger.wait("synchronize of a stream")
        wait_for(self.known)


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.known: Known = {}

    def record(self, stream: Stream | None = None) -> None:
        self.known = dict((stream or state.current).known)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or state.current).wait_event(self)

    def synchronize(self) -> None:
        ledger.wait("synchronize of an event")
        wait_for(self.known)

    def query(self) -> bool:
        wait_for(self.known)  # everything has happened already
        return True

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class State:
    """Attributes:
    current: the stream that operations go to.
    host: what the host has waited for.
    arriving: copies to pinned memory: stream, count, where to, and the numbers.
    allocated, peak, limit: bytes of the device's memory.
    """

    def __init__(self) -> None:
        self.host: Known = {}
        self.arriving: list[tuple[Stream, int, Tensor, Tensor]] = []
        self.allocated = self.peak = 0
        self.limit = TOTAL


state = State()
state.current = state.default = Stream()


@contextmanager
def on(stream: Stream | None) -> Iterator[None]:
    """Stands for `torch.cuda.stream`."""
    before = state.current
    state.current = stream or before
    try:
        yield
    finally:
        state.current = before


def wait_for(known: Known) -> None:
    """The host waits; copies that have arrived by then can be read."""
    _learn(state.host, known)
    there = [each for each in state.arriving if state.host.get(each[0], 0) >= each[1]]
    state.arriving = [each for each in state.arriving if state.host.get(each[0], 0) < each[1]]
    for _, _, target, numbers in there:
        target.copy_(numbers)


def wait_for_device() -> None:
    ledger.wait("synchronize of the device")
    wait_for({**{stream: count for stream, count, _, _ in state.arriving}, **state.current.known})


def wait_here(kind: str) -> None:
    """The host waits for the current stream, because of some operation."""
    ledger.wait(kind)
    wait_for(state.current.known)


def arrive_later(target: Tensor, numbers: Tensor) -> None:
    """A copy to pinned memory: until the host waits for it, wrong numbers are there."""
    target.fill_(float("nan") if target.is_floating_point() else 1)
    state.arriving.append((state.current, state.current.work(), target, numbers))


class Memory:
    """What tensors that share it know of its bytes on the device.

    Raises:
        torch.OutOfMemoryError: there is no room for it.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = -(-size // _ROUNDED) * _ROUNDED
        if state.allocated + self.size > state.limit:
            self.size = 0
            free = state.limit - state.allocated
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of {state.limit} "
                f"bytes of which {free} bytes are free."
            )
        state.allocated += self.size
        state.peak = max(state.peak, state.allocated)
        ledger.devices.add(str(device))
        self.home = self.writer = state.current
        self.written = state.current.work()
        self.users: Known = {}
        self.kept_for: set[Stream] = set()

    def use(self, *, write: bool) -> None:
        """An operation on the current stream reads it, or writes it too."""
        stream = state.current
        late = not stream.waited_for(self.writer, self.written)
        if write:
            late |= any(not stream.waited_for(*user) for user in self.users.items())
            self.writer, self.written = stream, stream.work()
        if late:
            ledger.race("used on a stream that did not wait for another stream's work on it")
        self.users[stream] = stream.count

    def __del__(self) -> None:
        state.allocated -= self.size
        for stream, count in getattr(self, "users", {}).items():
            if stream not in self.kept_for and not self.home.waited_for(stream, count):
                ledger.race("given back while another stream may still use it, without record_stream")
