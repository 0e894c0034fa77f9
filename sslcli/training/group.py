"""Several processes: joining the group that the environment describes, as torchrun and `ssl train --devices` set it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from sslcli import orphans
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.watch import STALL_TIMEOUT
from sslcli.distributed import on_its_own
from sslcli.plugin_exits import end_now

from .pulse import watched

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

#: The exit code of a process that has lost another one, for the launcher, which knows what became of that.
LOST = 87
#: Long enough for callbacks on rank 0 (a kNN evaluation, for example), for which the others wait.
_TIMEOUT = timedelta(minutes=60)
#: Seconds that a process waits, at least, for the others at the beginning.
_STARTING = 60.0
#: Seconds that a process waits for the others at the end of a group.
_LEAVING = 60.0
#: How many groups this process has been in.
_groups = 0


def described() -> bool:
    """Returns whether this process is one of several (torchrun's variables are set)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class LostGroup(SslError):
    """Another process has ended, or cannot be reached. The launcher says which; where there is none, this does."""

    shared = True  # one line is enough

    def __init__(self, reason: str) -> None:
        super().__init__(f"the other processes cannot be reached, perhaps since one of them failed: {reason}")
        self.exit_code = LOST if orphans.launched() else SslError.exit_code

    @property
    def lines(self) -> list[str]:
        return [] if orphans.launched() else super().lines


@contextmanager
def losses_named() -> Iterator[None]:
    """Turns what a collective operation in the block raises when another process has ended into a LostGroup."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain ones. Whatever ended the other process, it says so itself.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostGroup(str(error).splitlines()[0]) from error


@contextmanager
def joined(device: str, stall_timeout: float | None = STALL_TIMEOUT, *, shared: bool = True) -> Iterator[None]:
    """Joins the process group for the block; does nothing in a single process, or if it has joined already. If the
    work is not `shared`, this process does it on its own, whatever group there is.

    With `device`, `training.device`, on CUDA, tensors there go through NCCL, those on the CPU through gloo. A process
    that hangs is named after `stall_timeout` seconds (`pulse.watched`).

    Raises:
        SslError: the group cannot be formed, or another process of it has ended.
    """
    if not shared:
        try:
            with on_its_own():
                yield
        except SslError as error:
            error.alone = True  # nobody else shows it
            raise
        return
    if not described() or dist.is_initialized():
        yield
        return
    orphans.end_with_launcher()  # of a Python program, under torchrun; `ssl` has done it
    try:
        with _group(device, stall_timeout), losses_named(), watched(stall_timeout):
            yield
    except SslError as error:
        error.alone = not error.shared
        raise


@contextmanager
def _group(device: str, stall_timeout: float | None) -> Iterator[None]:
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"training.device: process {local_rank()} of this machine has no GPU of its own "
                f"(it has {torch.cuda.device_count()}); start fewer processes, or set training.device=cpu"
            )
        torch.cuda.set_device(local_rank())
    # With its device NCCL connects here, where a failure is reported, and never guesses a device from the rank.
    own = torch.device("cuda", local_rank()) if cuda else None
    try:
        with _within(stall_timeout):
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT, device_id=own)
            store = _own_store()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SslError(f"the process group could not be formed (rank {os.environ.get('RANK')}): {reason}") from error
    global _groups
    _groups += 1
    try:
        yield
        _leave_together(store, f"sslcli/left/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{_groups}")
    finally:
        dist.destroy_process_group()


@contextmanager
def _within(seconds: float | None) -> Iterator[None]:
    """Ends this process, with a line, if the block, in which it waits for the others, takes longer; None: never.

    They may start a while later: each imports torch and plugins first, perhaps from a slow disk.
    """
    if seconds is None:
        yield
        return
    seconds = max(seconds, _STARTING)

    def late() -> None:
        world, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
        line = f"not all {world} processes have joined it within {seconds:g} s"
        print(f"ssl: the process group could not be formed (rank {rank}): {line}", file=sys.stderr, flush=True)
        end_now(orphans.failed(SslError.exit_code))

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _own_store() -> Store:
    """Returns a connection to the group's store that no collective operation uses.

    It is made while the store exists: a new connection to one that has left is tried for minutes.
    """
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_LEAVING),
    )


def _leave_together(store: Store, key: str) -> None:
    """Waits, for a while, until all processes of the group need it no longer.

    gloo wakes a process that has received, or sent, everything with an error if the other one has closed its connection
    by then; so a process that leaves first would end the others' last operation.

    Args:
        store: of the group.
        key: of this group in it.
    """
    until = time.monotonic() + _LEAVING
    with suppress(RuntimeError):  # the store has left already
        store.add(key, 1)
        while store.add(key, 0) < dist.get_world_size() and time.monotonic() < until:
            time.sleep(0.01)
