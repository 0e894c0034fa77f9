"""The pulse of a group of processes: each says in the group's store now and then how far it has come, and sees whether
another one has stopped, or does nothing while all the others wait for it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sslcli.contracts.errors import SslError
from sslcli.data import watch
from sslcli.orphans import failed
from sslcli.plugin_exits import end_now, of_python

#: A process does nothing (it sleeps, or waits) whose main thread and all threads together, such as the one that writes
#: checkpoints, use less of a processor than this. This watch and NCCL's use some.
_BUSY = (0.001, 0.005)
#: Seconds that a process waits for its last beat to be written, which must not keep it from its end.
_LAST_BEAT = 5.0
_TORCH = str(Path(str(torch.__file__)).parent)


@dataclass(frozen=True)
class Beat:
    """What a process says about itself.

    Attributes:
        count: of its beats.
        arrived: how many collective operations it has begun.
        busy: whether it computed since the last beat, or waited for workers, which are watched elsewhere.
        where: the line that its main thread is in.
        pid: its number on its machine.
        host: that machine.
        done: whether it has left the block that is watched; it will not answer, and nobody waits for it.
    """

    count: int
    arrived: int
    busy: bool
    where: str
    pid: int
    host: str
    done: bool = False


class Stillness:
    """Adds up for how long each process has done nothing.

    Args:
        timeout: seconds after which it is taken for hung.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._seen: list[Beat] = []
        self._silent: list[float] = []
        self._idle: list[float] = []

    def hung(self, beats: Sequence[Beat], seconds: float) -> tuple[int, str] | None:
        """Returns the rank that is hung, and a line about it; None if there is none.

        Args:
            beats: the last one of each rank.
            seconds: since the last call.
        """
        if not self._seen:
            self._silent, self._idle = [0.0] * len(beats), [0.0] * len(beats)
        furthest = max((beat.arrived for beat in beats if not beat.done), default=0)
        for rank, (beat, before) in enumerate(zip(beats, self._seen, strict=False)):
            silent = beat.count == before.count and not beat.done
            self._silent[rank] = self._silent[rank] + seconds if silent else 0.0
            waits = beat.arrived == before.arrived and beat.arrived < furthest and not beat.done
            idle = waits and (silent or not beat.busy)
            self._idle[rank] = self._idle[rank] + seconds if idle else 0.0
        self._seen = list(beats)
        for still, what in (
            (self._silent, "has not answered for {} s"),
            (self._idle, "has done nothing for {} s while the others wait for it"),
        ):
            for rank, beat in enumerate(beats):
                if still[rank] >= self.timeout:
                    return rank, (
                        f"rank {rank} (pid {beat.pid} on {beat.host}) "
                        f"{what.format(f'{self.timeout:g}')} (training.stall_timeout); it was last seen at {beat.where}"
                    )
        return None


@contextmanager
def watched(timeout: float | None) -> Iterator[None]:
    """Watches the processes of the group, and is watched, in a block; ends this process if another one is hung, since
    the main thread waits for it in a collective operation that nothing can interrupt.

    Args:
        timeout: seconds; None: nobody is taken for hung.
    """
    if timeout is None:
        yield
        return
    ended, left, last, pause = threading.Event(), threading.Event(), dict[int, Beat](), min(timeout / 8, 10.0)
    own, group = (last, pause, ended), (dist.get_rank(), dist.get_world_size())
    # In threads of their own: who keeps the store may be the one that is hung, and then the exchange waits without end.
    watching = threading.Thread(
        target=_watch, args=(*group, *own, timeout, threading.get_ident()), daemon=True, name="pulse"
    )
    exchange = threading.Thread(target=_exchange, args=(*group, *own, left), daemon=True, name="pulse exchange")
    watching.start()
    exchange.start()
    try:
        yield
        left.set()
    finally:
        ended.set()
        exchange.join(_LAST_BEAT if left.is_set() else 0)


def _watch(
    rank: int, world: int, last: dict[int, Beat], pause: float, ended: threading.Event, timeout: float, main: int
) -> None:
    still, count, before, cpu = Stillness(timeout), 0, time.monotonic(), (0.0, 0.0)
    while not ended.wait(pause):
        now, used = time.monotonic(), _used(main)
        shares = [(new - old) / (now - before) for new, old in zip(used, cpu, strict=True)]
        busy = any(share >= least for share, least in zip(shares, _BUSY, strict=True)) or watch.waiting()
        # A program that was suspended has not waited.
        seconds, before, cpu, count = min(now - before, 2 * pause), now, used, count + 1
        last[rank] = Beat(count, _arrived(), busy, _where(main), os.getpid(), socket.gethostname())
        found = still.hung([last[each] for each in range(world)], seconds) if len(last) == world else None
        if found is not None:
            if rank != min(each for each in range(world) if each != found[0] and not last[each].done):
                return  # the one that ends here ends the group
            print(f"ssl: {found[1]}", file=sys.stderr, flush=True)
            end_now(failed(SslError.exit_code))


def _exchange(
    rank: int, world: int, last: dict[int, Beat], pause: float, ended: threading.Event, left: threading.Event
) -> None:
    """Writes this process's beats into the store, and brings those of the others into `last`; says when it is done."""
    # A connection of its own: those of the group wait for as long as an evaluation may take.
    with suppress(KeyError, ValueError, RuntimeError):  # a group that was formed in another way, or has ended
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=10)
        )
        while not ended.wait(pause):
            if rank in last:
                store.set(f"sslcli/pulse/{rank}", json.dumps(asdict(last[rank])))
                for other in range(world):
                    if other != rank:
                        last[other] = Beat(**json.loads(store.get(f"sslcli/pulse/{other}")))
        if left.is_set():
            own = last.get(rank) or Beat(0, 0, False, "?", os.getpid(), socket.gethostname())
            store.set(f"sslcli/pulse/{rank}", json.dumps(asdict(replace(own, done=True))))


def _arrived() -> int:
    """How many collective operations this process has begun, of the CPU's tensors and of the GPU's."""
    begun = 0
    for device in ("cpu", "cuda"):
        with suppress(RuntimeError, AttributeError):  # there is no such backend, or the group has ended
            backend: Any = dist.group.WORLD._get_backend(torch.device(device))  # type: ignore[union-attr]
            begun += backend._get_sequence_number_for_group()
    return begun


def _used(main: int) -> tuple[float, float]:
    """Seconds that the main thread has computed (0 where the system cannot tell), and the whole process."""
    has_clocks = hasattr(time, "pthread_getcpuclockid")
    return time.clock_gettime(time.pthread_getcpuclockid(main)) if has_clocks else 0.0, time.process_time()


def _where(main: int) -> str:
    """The innermost line of the main thread that is neither torch's nor Python's."""
    frame = sys._current_frames().get(main)
    innermost = frame
    while frame is not None and (of_python(name := frame.f_code.co_filename) or name.startswith(_TORCH)):
        frame = frame.f_back
    frame = frame or innermost
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
