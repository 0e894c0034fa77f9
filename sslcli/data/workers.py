"""The source for images that differ in size or don't fit into memory: worker processes decode each image once and crop
it for all its views, with the draws that a resident image would get; the device does the rest."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.source import FirstImages, Source, SourceBatch
from sslcli.phases import phase

from .cache.dataset import CachedDataset
from .crops import Cropper, Crops, Slice, at_most, split_views, wanted_side
from .decode import most_unreadable
from .plan import MicroBatch, Plan
from .processes import loader, worker_count
from .watch import STALL_TIMEOUT

if TYPE_CHECKING:
    from sslcli.views.pipeline import ViewMaker

#: Images that a worker crops at once: enough to make sending them cheap, few enough to keep all workers busy.
SLICE = 32
#: Most slices in flight (each is some 10 MB for two views of 224 px), beyond the two that every worker needs.
_IN_FLIGHT = 64
#: The share of unreadable images is not computed of fewer images than this; and how many are named.
_ENOUGH = 1000
_SHOWN = 10

log = logging.getLogger(__name__)


class WorkerSource(Source):
    """Batches whose views are cropped already. They depend neither on the number of workers nor on the first step.

    An image that cannot be read is replaced by another, which depends only on (seed, epoch, position, attempt). With no
    workers, this process decodes and crops.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        plan: Plan,
        views: ViewMaker,
        workers: int | Literal["auto"],
        stall_timeout: float | None = STALL_TIMEOUT,
    ) -> None:
        self.device = torch.device(device)
        self.plan = plan
        self.images = plan.length  #: that can be unreadable
        self.steps_per_epoch = plan.steps_per_epoch
        self.workers, self.stall_timeout = worker_count(workers, plan.world_size), stall_timeout
        self._limit = getattr(dataset.options, "max_unreadable", 0.01)
        self._unreadable: dict[int, str] = {}  # by index, so that each image counts once, however often it is tried
        self._seen = 0
        self._labels = dataset.labels
        self._cropper = Cropper(dataset, views, plan.seed)
        self._slices = math.ceil(plan.share / SLICE)  # of a micro-batch, except in a smaller last step
        self.ahead = math.ceil(self.workers * (self._ahead() or 0) / (self._slices * plan.accumulate))
        self._prepared = False
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        self._running: Generator[list[SourceBatch], None, None] | None = None

    def prepare(self, tell: object = None) -> None:
        dataset = self._cropper.dataset
        work = "decode and crop the images"
        if isinstance(dataset, CachedDataset):
            dataset.prepare()
            work = "crop the cached images"
        who = f"{self.workers} worker process{'es' if self.workers > 1 else ''}"
        log.info("training.workers: %s will %s", who if self.workers else "the training process itself", work)
        self._prepared = True

    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        if not self._prepared:
            self.prepare()
        self.close()
        self._running = self._batches(step)
        return self._running

    def first_images(self, step: int, count: int, side: int) -> FirstImages:
        part = next(self.plan.steps(step))[0]
        return self._first([Slice(part.epoch, part.first, part.index[:count].tolist(), step)], side)

    def _first(self, asked: Iterable[Slice], side: int) -> FirstImages:
        """What there is to show of slices, which are made here, one after another."""
        parts, originals, sizes, names, dataset = [], [], [], [], self._cropper.dataset
        for part in (self._cropper[each] for each in asked):
            if part.problem:
                raise UserError(part.problem)
            if part.exhausted:
                raise SslError(f"none of the images can be read: {part.unreadable[0][1]}")
            wanted = wanted_side(self._cropper.views.at(part.slice.step))
            for index in part.index:
                image = dataset.image_for(index, wanted)  # as it was cropped
                originals.append(at_most(image, side))
                sizes.append(image.shape[-2:])
                names.append(dataset.name_of(index))
            parts.append(part)
        return FirstImages(self._assembled(parts), originals, torch.tensor(sizes), names)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _batches(self, step: int) -> Generator[list[SourceBatch], None, None]:
        asked = _slices(self.plan.steps(step), step)
        pinned = self._stream is not None
        with loader(
            self._cropper, asked, self.workers, self._ahead(), pinned=pinned, timeout=self.stall_timeout
        ) as crops:
            for number in itertools.count(step):
                slices = math.ceil(self.plan.share_at(number) / SLICE)
                with phase("waiting" if self.workers else "data"):
                    received = [[next(crops) for _ in range(slices)] for _ in range(self.plan.accumulate)]
                batches = [self._batch(parts) for parts in received]
                yield batches

    def _ahead(self) -> int | None:
        """Slices that each worker gets in advance: those of two steps, so that a disk may stall for that long."""
        if not self.workers:
            return None
        wanted = math.ceil(2 * self._slices * self.plan.accumulate / self.workers)
        return min(max(2, wanted), max(2, _IN_FLIGHT // self.workers))

    def _batch(self, parts: list[Crops]) -> SourceBatch:
        self._count_unreadable(parts)
        return self._assembled(parts)

    def _assembled(self, parts: list[Crops]) -> SourceBatch:
        index = torch.tensor([number for part in parts for number in part.index])
        first = parts[0].slice
        labels = self._labels_of(parts, index)
        if self._stream is None:
            images = self._views(parts)
            labels = None if labels is None else labels.to(self.device)
        else:
            # On a separate stream, so that the copy does not wait for the step that the device is still busy with.
            with phase("transfer"), torch.cuda.stream(self._stream):
                images = self._views(parts)
                if labels is not None:
                    labels = labels.pin_memory().to(self.device, non_blocking=True)
            current = torch.cuda.current_stream(self.device)
            with phase("transfer"):
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

    def _labels_of(self, parts: list[Crops], index: Tensor) -> Tensor | None:
        return None if self._labels is None else self._labels[index]

    def _count_unreadable(self, parts: list[Crops]) -> None:
        """Raises SslError if too many of the images seen so far cannot be read, or none of those tried for one, or a
        view cannot be made."""
        for part in parts:
            if part.problem:
                raise UserError(part.problem)
            self._seen += len(part.index)
            self._unreadable.update(part.unreadable)
            seen = min(self.images, max(self._seen, _ENOUGH))
            count = len(self._unreadable)
            if part.exhausted or count > most_unreadable(self._limit, seen):
                shown = list(self._unreadable.values())[:_SHOWN]
                if count > _SHOWN:
                    shown.append(f"and {count - _SHOWN} more")
                raise SslError(
                    f"{count} of {seen:,} images cannot be read, more than data.max_unreadable={self._limit:g} allows; "
                    f"repair or remove them, or raise it: {'; '.join(shown)}"
                )

    def _views(self, parts: list[Crops]) -> list[Tensor]:
        """The slices' buffers → (N, C, S, S) per view, on the device; adjacent views of one size follow in memory."""
        views, shapes = [], self._cropper.shapes(parts[0].slice.step)
        for part in parts:
            buffer = part.buffer.to(self.device, non_blocking=self._stream is not None)
            views.append(split_views(buffer, len(part.index), shapes))
        if len(views) == 1:
            return views[0]
        count = sum(len(part.index) for part in parts)
        result: list[Tensor] = []
        for _, same in itertools.groupby(zip(shapes, zip(*views, strict=True), strict=True), key=lambda pair: pair[0]):
            result += torch.split(torch.cat([rows for _, view in same for rows in view]), count)
        return result


def _slices(steps: Iterable[list[MicroBatch]], first: int) -> Iterator[Slice]:
    """The same order, in the smaller portions that workers take; `first` is the index of the first step."""
    for step, micro_batches in enumerate(steps, first):
        for batch in micro_batches:
            for start in range(0, len(batch.index), SLICE):
                yield Slice(batch.epoch, batch.first + start, batch.index[start : start + SLICE].tolist(), step)
