"""Datasets without files, and comparisons of batches, for tests of sources."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions
from sslcli.contracts.errors import UnreadableImage
from sslcli.contracts.source import SourceBatch
from sslcli.contracts.views import ViewSpec
from sslcli.data.plan import Plan
from sslcli.data.workers import WorkerSource
from sslcli.views.pipeline import ViewMaker

CPU = torch.device("cpu")


def views(*sizes: int, seed: int = 0) -> ViewMaker:
    """One kind of two views for each size; by default 16 and 8 pixels."""
    operations = [{"name": "crop", "options": {}}, {"name": "flip", "options": {}}]
    specs = [ViewSpec.parse({"count": 2, "size": size, "operations": operations}) for size in sizes or (16, 8)]
    return ViewMaker(specs, 3, (0.5,) * 3, (0.25,) * 3, seed)


class Numbered(Dataset):
    """Images of one size; image i is filled with i, and its label is i modulo 3."""

    def __init__(
        self, length: int, keeps: bool = True, size: tuple[int, int] | None = (2, 4), labeled: bool = True
    ) -> None:
        super().__init__(DatasetOptions())
        self.info = DataInfo("numbered", 3, size, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
        self.labels = torch.arange(length) % 3 if labeled else None
        self.length, self.keeps = length, keeps

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        return torch.full((3, 2, 4), index, dtype=torch.uint8)

    def images(self) -> Tensor | None:
        return torch.stack([self.image(index) for index in range(len(self))]) if self.keeps else None


class UnevenOptions(DatasetOptions):
    max_unreadable: float = 0.01


class Uneven(Numbered):
    """Images of different sizes; some cannot be read."""

    def __init__(self, length: int, unreadable: Iterable[int] = (), limit: float = 1.0) -> None:
        super().__init__(length, keeps=False, size=None)
        self.options, self.unreadable = UnevenOptions(max_unreadable=limit), frozenset(unreadable)

    def image(self, index: int) -> Tensor:
        if index in self.unreadable:
            raise UnreadableImage(f"{index}.png", "damaged")
        return torch.full((3, 10 + index % 7, 12 + index % 5), index % 256, dtype=torch.uint8)


def assert_same(first: SourceBatch, second: SourceBatch) -> None:
    """That two batches are bitwise equal, on whatever device each is."""
    assert len(first.images) == len(second.images)
    assert first.labels is not None
    assert second.labels is not None
    pairs = [*zip(first.images, second.images, strict=True), (first.labels, second.labels)]
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.positions, second.positions)
    assert (first.epoch, first.cropped, first.replaced) == (second.epoch, second.cropped, second.replaced)


def assert_all_same(first: list[list[SourceBatch]], second: list[list[SourceBatch]]) -> None:
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)


@contextmanager
def opened(
    data: Dataset, batch_size: int, accumulate: int = 1, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[WorkerSource]:
    plan = Plan(data.info.name, len(data), batch_size, accumulate, seed, rank, world)
    source = WorkerSource(data, CPU, plan, views(seed=seed), workers)
    try:
        yield source
    finally:
        source.close()
        assert multiprocessing.active_children() == []


def take(data: Dataset, step: int, count: int, *arguments: int, **named: int) -> list[list[SourceBatch]]:
    with opened(data, *arguments, **named) as source:
        return list(islice(source.batches(step), count))
