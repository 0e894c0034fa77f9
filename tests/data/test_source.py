"""Sources that keep all images on the device, and the order that all sources share."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from source_helpers import CPU, Numbered, assert_all_same, assert_same, views
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.source import Source, SourceBatch
from sslcli.data import plan as plan_module
from sslcli.data.plan import Plan
from sslcli.data.source import RESIDENT_BYTES, ResidentSource, open_source, resident_budget, resident_images
from sslcli.data.workers import WorkerSource


def resident(dataset: Dataset, device: torch.device, *arguments: int, **named: int) -> ResidentSource:
    images = dataset.images()
    assert images is not None
    return ResidentSource(dataset, device, Plan("numbered", len(dataset), *arguments, **named), images)


def take(source: Source, step: int, count: int) -> list[list[SourceBatch]]:
    return list(islice(source.batches(step), count))


def test_a_batch_has_the_images_and_labels_of_its_index() -> None:
    for (batch,) in take(resident(Numbered(50), CPU, 8), 0, 6):
        assert batch.images[0].shape == (8, 3, 2, 4)
        assert batch.images[0].dtype == torch.uint8
        assert torch.equal(batch.images[0][:, 0, 0, 0].long(), batch.index)
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.index % 3)
        assert not batch.cropped
    assert take(resident(Numbered(10, labeled=False), CPU, 5), 0, 1)[0][0].labels is None


def test_an_epoch_shows_each_image_once() -> None:
    source = resident(Numbered(60), CPU, 12)
    assert source.steps_per_epoch == 5
    for epoch in range(2):
        batches = take(source, epoch * 5, 5)
        assert {batch.epoch for (batch,) in batches} == {epoch}
        assert torch.cat([batch.index for (batch,) in batches]).sort().values.tolist() == list(range(60))
        assert torch.cat([batch.positions for (batch,) in batches]).tolist() == list(range(60))


def test_an_incomplete_last_batch_is_left_out() -> None:
    source = resident(Numbered(50), CPU, 8)
    assert source.steps_per_epoch == 6
    batches = take(source, 0, 7)
    assert [batch.epoch for (batch,) in batches] == [0] * 6 + [1]
    assert len(set(torch.cat([batch.index for (batch,) in batches[:6]]).tolist())) == 48
    assert batches[6][0].positions.tolist() == list(range(8))


def test_orders_of_epochs_and_seeds_differ() -> None:
    source = resident(Numbered(64), CPU, 64)
    first, second = take(source, 0, 2)
    other = take(resident(Numbered(64), CPU, 64, seed=1), 0, 1)[0]
    assert not torch.equal(first[0].index, second[0].index)
    assert not torch.equal(first[0].index, other[0].index)


@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_the_stream_from_a_step_is_the_tail_of_the_stream(step: int) -> None:
    whole = take(resident(Numbered(50), CPU, 8, accumulate=2, seed=3), 0, 20)
    tail = take(resident(Numbered(50), CPU, 8, accumulate=2, seed=3), step, 20 - step)
    assert_all_same(whole[step:], tail)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 4), (2, 1), (2, 3), (4, 2)])
def test_ranks_and_accumulation_divide_the_same_global_batch(world_size: int, accumulate: int) -> None:
    whole = take(resident(Numbered(100), CPU, 24, seed=1), 0, 5)
    ranks = [
        take(resident(Numbered(100), CPU, 24, accumulate, 1, rank, world_size), 0, 5) for rank in range(world_size)
    ]
    for step, (expected,) in enumerate(whole):
        parts = [ranks[rank][step][micro] for micro in range(accumulate) for rank in range(world_size)]
        assert {len(part.index) for part in parts} == {24 // world_size // accumulate}
        assert torch.equal(torch.cat([part.index for part in parts]), expected.index)
        assert torch.equal(torch.cat([part.positions for part in parts]), expected.positions)


def test_the_order_is_computed_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: int) -> Tensor:
        calls.append(arguments)
        return torch.arange(arguments[2])

    monkeypatch.setattr(plan_module, "permutation", counted)
    take(resident(Numbered(50), CPU, 8, seed=9), 4, 8)
    assert calls == [(9, 0, 50), (9, 1, 50)]


def test_the_order_of_many_millions_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SORT_LIMIT", 10)
    monkeypatch.setattr("sslcli.randomness.SORT_LIMIT", 10)
    parts = [part for step in islice(Plan("large", 1000, 100, 2).steps(0), 10) for part in step]
    assert {len(part.index) for part in parts} == {50}
    assert torch.cat([part.index for part in parts]).sort().values.tolist() == list(range(1000))


@pytest.mark.parametrize(("accumulate", "world_size", "multiple"), [(3, 1, 3), (1, 3, 3), (4, 4, 16)])
def test_a_batch_that_cannot_be_divided_is_refused(accumulate: int, world_size: int, multiple: int) -> None:
    with pytest.raises(UserError, match=rf"^training.batch_size: 8 .* multiple of {multiple},[^\n]*$"):
        resident(Numbered(50), CPU, 8, accumulate, world_size=world_size)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"^training.batch_size: 64 is more than the 50 images of numbered[^\n]*$"):
        resident(Numbered(50), CPU, 64)


class Damaged(Numbered):
    def image(self, index: int) -> Tensor:
        if index == 5:
            raise UnreadableImage("five", "damaged")
        return super().image(index)


def test_images_of_one_size_that_fit_and_can_be_read_are_resident() -> None:
    found, expected = resident_images(Numbered(9, keeps=False)), Numbered(9).images()
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
    assert resident_images(Numbered(9), budget=9 * 24) is not None
    assert resident_images(Numbered(9), budget=9 * 24 - 1) is None
    assert resident_images(Numbered(9, keeps=False, size=None)) is None
    assert resident_images(Damaged(9, keeps=False)) is None


def test_open_source_takes_the_resident_one_where_images_have_one_size() -> None:
    opened = open_source(Numbered(50), CPU, 8, accumulate=2, seed=4, views=views())
    assert isinstance(opened, ResidentSource)
    (first,), (second,) = take(opened, 3, 1), take(resident(Numbered(50), CPU, 8, 2, 4), 3, 1)
    assert_same(first[1], second[1])


def test_images_that_do_not_fit_into_free_memory_are_read_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 1 << 40, "cpu": 1 << 40}
    monkeypatch.setattr("sslcli.data.source.free_memory", lambda device: free[device.type])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cuda = torch.device("cuda")
    assert resident_budget(cuda) == RESIDENT_BYTES
    free["cuda"] = 3000
    assert resident_budget(cuda) == 1500
    free["cpu"] = 2000  # the images are decoded on the host
    assert resident_budget(cuda) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resident_budget(cuda) == 500
    free["cpu"] = 2 * 2 * 50 * 24
    assert isinstance(open_source(Numbered(50), CPU, 8, views=views()), ResidentSource)
    free["cpu"] -= 4
    assert isinstance(open_source(Numbered(50), CPU, 8, views=views()), WorkerSource)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("something else")])
def test_images_are_read_while_training_where_their_copy_finds_no_room(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(ResidentSource, "__init__", refused)
    if isinstance(error, torch.OutOfMemoryError):
        assert isinstance(open_source(Numbered(50), CPU, 8, views=views()), WorkerSource)
    else:
        with pytest.raises(RuntimeError, match="something else"):
            open_source(Numbered(50), CPU, 8, views=views())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_cuda_are_those_on_the_cpu_without_waiting_for_the_device() -> None:
    source = resident(Numbered(50), torch.device("cuda"), 8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = take(source, 0, 7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {batch.images[0].device.type for (batch,) in found} == {"cuda"}
    assert_all_same(found, take(resident(Numbered(50), CPU, 8), 0, 7))
