"""The source for images that differ in size or don't fit into memory: worker processes decode each image once and crop
it for all its views, with the draws that a resident image would get; the device does all the rest."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.utils.data
from torch import Tensor

from sslcli.contracts.data import Dataset, Source, SourceBatch
from sslcli.contracts.errors import SslError

from .crops import Cropper, Crops, Slice, split_views
from .plan import Plan, Stretch
from .unreadable import Unreadable

if TYPE_CHECKING:
    from sslcli.views.pipeline import ViewMaker

#: Images that a worker crops at a stretch: enough to make sending them cheap, few enough to keep all workers busy.
SLICE = 32
#: Slices on the way at most (each is some 10 MB for two views of 224 px) beyond the two that every worker needs.
_IN_FLIGHT = 64
_MOST_WORKERS = 16


def worker_count(workers: int | Literal["auto"], world_size: int = 1) -> int:
    """Returns how many workers `auto` means: this process's part of the usable cores but one, from 1 to 16."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # torchrun's word for those on this machine
    return min(max(cores // processes - 1, 1), _MOST_WORKERS)


class WorkerSource(Source):
    """Batches whose views are cropped already. They depend neither on the number of workers nor on the step begun at.

    An image that cannot be read is replaced by another, which depends on (seed, epoch, position, attempt) alone.

    Args:
        dataset: where the images come from.
        device: where the batches go.
        plan: which images make up a batch.
        views: how they are cropped.
        workers: processes that decode and crop; 0 does it in this one.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        plan: Plan,
        views: ViewMaker,
        workers: int | Literal["auto"] = "auto",
    ) -> None:
        self.device = torch.device(device)
        self.plan = plan
        self.steps_per_epoch = plan.steps_per_epoch
        self.workers = worker_count(workers, plan.world_size)
        self.unreadable = Unreadable(len(dataset), getattr(dataset.options, "max_unreadable", 0.01))
        self._labels = dataset.labels
        self._cropper = Cropper(dataset, views, plan.seed)
        self._slices = math.ceil(plan.share / SLICE)  # of a micro-batch
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        self._running: Generator[list[SourceBatch], None, None] | None = None

    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        self.close()
        self._running = self._batches(step)
        return self._running

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _batches(self, step: int) -> Generator[list[SourceBatch], None, None]:
        crops = iter(self._loader(_slices(self.plan.steps(step))))
        try:
            while True:
                with worker_errors() if self.workers else nullcontext():
                    received = [[next(crops) for _ in range(self._slices)] for _ in range(self.plan.accumulate)]
                    batches = [self._batch(parts) for parts in received]
                yield batches
        finally:
            # Whoever holds a traceback holds the iterator too, so that its processes would outlive an exception.
            if self.workers:
                crops._shutdown_workers()  # type: ignore[attr-defined]

    def _loader(self, slices: Iterable[Slice]) -> torch.utils.data.DataLoader[Any]:
        ahead = None
        if self.workers:
            wanted = math.ceil(2 * self._slices * self.plan.accumulate / self.workers)
            ahead = min(max(2, wanted), max(2, _IN_FLIGHT // self.workers))
        return torch.utils.data.DataLoader(
            self._cropper,
            batch_size=None,
            sampler=slices,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            prefetch_factor=ahead,
            pin_memory=self._stream is not None,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else starting would draw from the global one
        )

    def _batch(self, parts: list[Crops]) -> SourceBatch:
        self.unreadable.take(parts)
        index = torch.tensor([place for part in parts for place in part.index])
        first = parts[0].slice
        labels = None if self._labels is None else self._labels[index]
        if self._stream is None:
            images = self._join([part.buffer.to(self.device) for part in parts], parts)
            labels = None if labels is None else labels.to(self.device)
        else:
            # On a stream of its own, so that the copy does not wait for the step that the device is still busy with.
            with torch.cuda.stream(self._stream):
                images = self._join([part.buffer.to(self.device, non_blocking=True) for part in parts], parts)
                if labels is not None:
                    labels = labels.pin_memory().to(self.device, non_blocking=True)
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in (*images, labels):
                if tensor is not None:
                    tensor.record_stream(current)
        return SourceBatch(
            images=images,
            cropped=True,
            labels=labels,
            index=index,
            positions=torch.arange(first.first, first.first + len(index)),
            epoch=first.epoch,
            replaced=tuple(text for part in parts for _, text in part.unreadable),
        )

    def _join(self, buffers: list[Tensor], parts: list[Crops]) -> list[Tensor]:
        """The slices' buffers → (N, C, S, S) per view."""
        views = [
            split_views(buffer, len(part.index), self._cropper.shapes)
            for buffer, part in zip(buffers, parts, strict=True)
        ]
        return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*views, strict=True)]


def _slices(steps: Iterable[list[Stretch]]) -> Iterator[Slice]:
    """The same order in the smaller portions that workers take."""
    for stretches in steps:
        for stretch in stretches:
            for start in range(0, len(stretch.index), SLICE):
                yield Slice(stretch.epoch, stretch.first + start, stretch.index[start : start + SLICE].tolist())


def _as_it_is(crops: Any) -> Any:
    return crops


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is for the main process, which still wants the batch for its last step; it
    # ends the workers itself, and they end themselves when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Says what to do about workers that the system has ended; errors raised in a worker pass with its traceback.

    Torch raises from a signal handler when a worker dies, so at any line of the main process; or else the connection
    breaks over which a worker was handing its crops on.

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
            f"a worker process died, most likely for want of memory ({reason}): try fewer training.workers or a "
            "smaller batch, or give /dev/shm more room"
        ) from error
