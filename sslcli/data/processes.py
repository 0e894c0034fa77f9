"""Worker processes: how many, how they start and end, and the message when one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.utils.data

from sslcli.contracts.errors import SslError

_MOST_WORKERS = 16


def usable_cores() -> int:
    """Returns how many of the processor's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | Literal["auto"], world_size: int = 1) -> int:
    """Returns how many workers `auto` means: this process's part of the usable cores but one, from 1 to 16."""
    if workers != "auto":
        return workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun's, on this machine
    return min(max(usable_cores() // processes - 1, 1), _MOST_WORKERS)


@contextmanager
def loader(
    work: torch.utils.data.Dataset[Any],
    tasks: Iterable[Any] | None,
    workers: int,
    ahead: int | None = None,
    *,
    pinned: bool = False,
) -> Iterator[Iterator[Any]]:
    """Gives a block `work[task]` for each task, in order, from workers that end with it; with 0, from this process.

    Without tasks `work` is an `IterableDataset`, and the results are those of its workers, by turns. Each worker gets
    `ahead` tasks in advance (by default torch's 2). Results are in pinned memory if `pinned`.
    """
    loaded = torch.utils.data.DataLoader(
        work,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=ahead,
        pin_memory=pinned,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise starting would draw from the global one
    )
    results: Any = iter(loaded)
    try:
        yield results
    finally:  # a traceback keeps the iterator alive, so that its processes would outlive an exception
        if workers:
            results._shutdown_workers()


def _as_it_is(result: Any) -> Any:
    return result


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is left to the main process, which still needs the batch for its last step; it
    # ends the workers itself, and they end themselves when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Adds a remedy to the error when the system has ended a worker; errors raised in a worker pass with its traceback.

    Torch raises from a signal handler when a worker dies, thus at any line of the main process; or the connection
    breaks over which a worker was sending its crops.

    Raises:
        SslError: instead of those.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        text = str(error)
        if text.startswith("Caught") or (isinstance(error, RuntimeError) and "DataLoader worker" not in text):
            raise
        reason = text.splitlines()[0].strip() if text else type(error).__name__
        raise SslError(
            f"a worker process died, most likely from lack of memory ({reason}): try fewer training.workers, a "
            "smaller batch, or data.cache=disk instead of memory, or enlarge /dev/shm"
        ) from error
