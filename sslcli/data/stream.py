"""The source for streams: this process and its workers each read the lanes (see `lanes`) of their part of every batch,
decode and crop it as for any other data, and say where the lanes go on."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.utils.data
from torch import Tensor

from sslcli import distributed
from sslcli.contracts.data import StreamDataset
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.source import FirstImages, SourceBatch
from sslcli.phases import phase

from .crops import Cropper, Crops, Slice
from .lanes import START, Block, Lane, Layout, Place, images_per_epoch
from .plan import Plan
from .processes import loader
from .watch import STALL_TIMEOUT
from .workers import WorkerSource

if TYPE_CHECKING:
    from sslcli.views.pipeline import ViewMaker

#: What a worker makes of a step: its crops, and the place of each of its lanes after it; or why it cannot.
Made = tuple[list[Crops], dict[int, Place]] | str


class StreamSource(WorkerSource):
    """Batches of a stream; which images they have depends on neither workers, processes nor micro-batches.

    An image that cannot be read is replaced by another of its lane's block.
    """

    def __init__(
        self,
        stream: StreamDataset,
        device: torch.device,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int,
        world_size: int,
        views: ViewMaker,
        workers: int | Literal["auto"],
        stall_timeout: float | None = STALL_TIMEOUT,
    ) -> None:
        plan = Plan(
            stream.info.name, images_per_epoch(stream), batch_size, accumulate, seed, rank, world_size,
            set_by="data.epoch_images",
        )  # fmt: skip
        super().__init__(Block(stream), device, plan, views, workers, stall_timeout)
        known = [count for count in (stream.length, stream.options.limit) if count is not None]
        self.images = min(known, default=sys.maxsize)
        self.stream = stream
        self.layout = Layout.of(stream, batch_size, plan.steps_per_epoch, seed)
        self.ahead = 2 if self.workers else 0
        #: A step and the place of each lane; and the last step that was yielded, with those of this process's lanes.
        self._start: tuple[int, dict[int, Place]] = 0, dict.fromkeys(range(self.layout.lanes), START)
        self._done: tuple[int, dict[int, Place]] = 0, {}

    def prepare(self, tell: object = None) -> None:
        if any(other != self.layout.names for other in distributed.gather_objects(self.layout.names)):
            raise UserError(f"data: the processes find other shards of {self.stream.info.name!r}, or in another order")
        super().prepare(tell)

    def cursor(self) -> dict[str, Any]:
        places = dict(self._start[1])
        for lanes in distributed.gather_objects(self._done[1]):
            places |= lanes
        return {"step": self._done[0], "lanes": [places[lane] for lane in sorted(places)], **self.layout.identity()}

    def restore(self, cursor: dict[str, Any] | None) -> None:
        before, now = cursor or {}, self.layout.identity()
        for name, value in now.items():
            if before.get(name) != value:
                raise UserError(
                    f"data: a stream cannot be resumed with other {name}: {before.get(name)} in the run, {value} now"
                )
        lanes = [(turn, position, taken) for turn, position, taken in before["lanes"]]
        self._start = before["step"], dict(enumerate(lanes))
        self._done = before["step"], {}

    def _batches(self, step: int) -> Generator[list[SourceBatch], None, None]:
        self._check_start(step)
        self._done = step, {}
        reader = _Reader(self.stream, self._cropper, self.layout, self.plan, *self._start)
        pinned, parallel = self._stream is not None, self.plan.world_size * self.plan.share
        ahead, timeout = 2 if self.workers else None, self.stall_timeout
        with loader(reader, None, self.workers, ahead, pinned=pinned, timeout=timeout) as made:
            for number in itertools.count(step):
                with phase("waiting" if self.workers else "data"):
                    crops, places = _joined([next(made) for _ in range(max(self.workers, 1))])
                crops.sort(key=lambda part: part.slice.first)
                micro = itertools.groupby(crops, lambda part: part.slice.first % self.plan.batch_size // parallel)
                batches = [self._batch(list(parts)) for _, parts in micro]
                self._done = number + 1, places
                yield batches

    def first_images(self, step: int, count: int, side: int) -> FirstImages:
        self._check_start(step)
        block, parts = self._cropper.dataset, _parts(self.plan, self.layout, 0, 1)
        first = parts[0][1]
        epoch, place = divmod(step, self.plan.steps_per_epoch)

        def slices() -> Iterator[Slice]:
            assert isinstance(block, Block)
            for number, begin, stop in parts:
                if first <= begin < (end := min(stop, first + min(count, self.plan.share))):
                    lane = Lane(self.stream, self.layout, number, self._start[1][number], step)
                    order = lane.advance()[begin - self.layout.first(number) : end - self.layout.first(number)]
                    block.held = lane.block
                    yield Slice(epoch, place * self.plan.batch_size + begin, order, step)

        found = self._first(slices(), side)
        return replace(found, batch=replace(found.batch, labels=None))

    def _check_start(self, step: int) -> None:
        if step != self._start[0]:
            raise ValueError(f"a stream cannot go to step {step}: its cursor is at step {self._start[0]}")

    def _labels_of(self, parts: list[Crops], index: Tensor) -> Tensor | None:
        if self.stream.info.classes is None:
            return None
        return torch.tensor([label for part in parts for label in part.labels])


def _joined(made: list[Made]) -> tuple[list[Crops], dict[int, Place]]:
    crops: list[Crops] = []
    places: dict[int, Place] = {}
    for each in made:
        if isinstance(each, str):
            raise SslError(each)
        crops += each[0]
        places |= each[1]
    return crops, places


class _Reader(torch.utils.data.IterableDataset[Made]):
    """What each worker does; picklable. To torch it is a dataset of which each worker has a part."""

    def __init__(
        self,
        stream: StreamDataset,
        cropper: Cropper,
        layout: Layout,
        plan: Plan,
        step: int,
        places: dict[int, Place],
    ) -> None:
        self.stream, self.cropper, self.layout, self.plan = stream, cropper, layout, plan
        self.step, self.places = step, places

    def __iter__(self) -> Iterator[Made]:
        worker = torch.utils.data.get_worker_info()
        parts = _parts(self.plan, self.layout, *((worker.id, worker.num_workers) if worker is not None else (0, 1)))
        try:
            yield from self._steps(parts)
        except SslError as error:  # raised in a worker it would have a traceback
            yield str(error)

    def _steps(self, parts: list[tuple[int, int, int]]) -> Iterator[Made]:
        numbers = sorted({number for number, _, _ in parts})
        lanes = {n: Lane(self.stream, self.layout, n, self.places[n], self.step) for n in numbers}
        for step in itertools.count(self.step):
            epoch, batch = divmod(step, self.layout.steps_per_epoch)
            orders = {number: lane.advance() for number, lane in lanes.items()}
            crops = []
            for number, first, stop in parts:
                begin = self.layout.first(number)
                index = orders[number][first - begin : stop - begin]
                asked = Slice(epoch, batch * self.plan.batch_size + first, index, step)
                crops.append(self._crop(lanes[number], asked))
            yield crops, {number: lane.place for number, lane in lanes.items()}

    def _crop(self, lane: Lane, asked: Slice) -> Crops:
        block = self.cropper.dataset
        assert isinstance(block, Block)
        block.held = lane.block
        crops = self.cropper[asked]
        used = [lane.block[index] for index in crops.index]
        unreadable = [(lane.block[index].number, text) for index, text in crops.unreadable]
        labels = [each.item.label or 0 for each in used]
        return replace(crops, index=[each.number for each in used], labels=labels, unreadable=unreadable)


def _parts(plan: Plan, layout: Layout, worker: int, workers: int) -> list[tuple[int, int, int]]:
    """Returns the parts of each batch that a worker makes: a lane, and from where to where in the batch.

    Each has an equal part of this process's images of a step, and of its micro-batches one after the other.
    """
    own = plan.accumulate * plan.share
    begin, end = worker * own // workers, (worker + 1) * own // workers
    found = []
    for micro in range(plan.accumulate):
        ahead = (micro * (plan.world_size - 1) + plan.rank) * plan.share  # images of other processes before it
        first, stop = max(begin, micro * plan.share) + ahead, min(end, (micro + 1) * plan.share) + ahead
        for lane in range(layout.lanes):
            part = lane, max(first, layout.first(lane)), min(stop, layout.first(lane + 1))
            if part[1] < part[2]:
                found.append(part)
    return found
