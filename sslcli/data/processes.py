"""Worker processes: how many, and how they start and end."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

import torch
import torch.utils.data

from sslcli.contracts.errors import SslError
from sslcli.orphans import end_with_parent

from .watch import STALL_TIMEOUT, Watch, mark_in, remedy

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
    timeout: float | None = STALL_TIMEOUT,
) -> Iterator[Iterator[Any]]:
    """Gives a block `work[task]` for each task, in order, from workers that end with it; with 0, from this process.

    Without tasks `work` is an `IterableDataset`, and the results are those of its workers, by turns. Each worker gets
    `ahead` tasks in advance (by default torch's 2). Results are in pinned memory if `pinned`. A worker that dies, or
    that shows no progress for `timeout` seconds while its result is awaited, is an SslError (`watch.Watch`), as are
    workers that cannot be started.
    """
    watch = Watch(workers, timeout, getattr(work, "name_of", None)) if workers else None
    loaded = torch.utils.data.DataLoader(
        work,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=ahead,
        pin_memory=pinned,
        worker_init_fn=functools.partial(_start_worker, watch.marks, watch.words) if watch is not None else None,
        generator=torch.Generator(),  # otherwise starting would draw from the global one
    )
    if watch is None:
        yield iter(loaded)
        return
    # Otherwise the end of an iterator that could not be started is a traceback.
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown = True
    try:
        watch.open(iter(loaded))
    except OSError as error:
        said = error.strerror or str(error)
        raise SslError(f"worker processes cannot be started ({said}): {remedy(said)}") from error
    try:
        yield watch
    finally:
        watch.close()


def _as_it_is(result: Any) -> Any:
    return result


def _start_worker(marks: Any, words: Any, number: int) -> None:
    end_with_parent()
    mark_in(marks, words, number)
    torch.set_num_threads(1)
    # A signal to the whole process group is left to the main process, which still needs the batch for its last step; it
    # ends the workers itself, and they end themselves when it is gone.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.excepthook = _show_error


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an error of a worker's own threads, unless the main process was killed and so has closed its connections:
    Python's, which hands over tensors, would print a traceback then."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
