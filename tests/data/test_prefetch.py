"""Workers go on while the consumer, or a part of the disk, does not."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from itertools import islice

import pytest
import torch
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, SourceBatch
from sslcli.contracts.views import ViewSpec
from sslcli.data import workers as workers_module
from sslcli.data.plan import Plan
from sslcli.data.workers import WorkerSource
from sslcli.views.pipeline import ViewMaker

BATCH = 8


class SlowDisk(Dataset):
    """Images of different sizes; reading one counts, and waits while its disk stalls."""

    def __init__(self, length: int) -> None:
        super().__init__(DatasetOptions())
        self.info = DataInfo("slow", 3, None, (0.5,) * 3, (0.5,) * 3)
        self.length = length
        self.reads = multiprocessing.Value("l", 0)
        self.stalled = multiprocessing.Value("l", -1)
        self.waiting = multiprocessing.Event()
        self.again = multiprocessing.Event()

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        if index == self.stalled.value:
            self.waiting.set()
            assert self.again.wait(60)
        with self.reads.get_lock():
            self.reads.value += 1
        return torch.full((3, 10 + index % 7, 12), index % 256, dtype=torch.uint8)


def source_of(data: Dataset, workers: int) -> WorkerSource:
    operations = [{"name": "crop", "options": {}}]
    views = ViewMaker([ViewSpec.parse({"count": 2, "size": 8, "operations": operations})], 3, (0.5,) * 3, (0.5,) * 3, 0)
    return WorkerSource(data, torch.device("cpu"), Plan("slow", len(data), BATCH), views, workers)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SLICE", 4)  # two for each batch


def images(batches: list[list[SourceBatch]]) -> list[Tensor]:
    return [view for (batch,) in batches for view in batch.images]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_two_batches_ahead_of_one_that_is_held_and_no_more(workers: int) -> None:
    data = SlowDisk(80)
    source = source_of(data, workers)
    try:
        batches = source.batches(0)
        for held in range(1, 4):
            next(batches)
            assert eventually(lambda: data.reads.value >= BATCH * (held + 2))  # noqa: B023 (called at once)
            time.sleep(0.05)  # would go on if nothing held it back
            assert data.reads.value == BATCH * (held + 2)
    finally:
        source.close()


def test_what_was_read_ahead_comes_while_the_disk_stalls_and_nothing_is_lost() -> None:
    expected = source_of(SlowDisk(80), 0)
    whole = list(islice(expected.batches(0), 6))
    data = SlowDisk(80)
    (stalls,) = whole[3]
    data.stalled.value = int(stalls.index[0])
    source = source_of(data, 2)
    try:
        batches = source.batches(0)
        found = [next(batches)]
        assert eventually(lambda: data.reads.value == BATCH * 3)
        found.append(next(batches))  # asks for the batch that stalls
        assert data.waiting.wait(30)
        found.append(next(batches))  # and this was there before
        # The other worker does not wait for the first: its half of the batch that stalls, and of the one after it.
        assert eventually(lambda: data.reads.value == BATCH * 4)
        data.again.set()
        found += islice(batches, 3)
    finally:
        data.again.set()
        source.close()
    assert all(torch.equal(one, other) for one, other in zip(images(whole), images(found), strict=True))


def test_workers_live_on_from_epoch_to_epoch() -> None:
    source = source_of(SlowDisk(24), 2)
    try:
        batches = source.batches(0)
        next(batches)
        before = {child.pid for child in multiprocessing.active_children()}
        epochs = {batch.epoch for (batch,) in islice(batches, 10)}
        assert {child.pid for child in multiprocessing.active_children()} == before
        assert len(before) == 2
        assert epochs == {0, 1, 2, 3}
    finally:
        source.close()
