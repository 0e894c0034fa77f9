from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, SourceBatch
from sslcli.contracts.errors import SslError, UnreadableImage
from sslcli.contracts.views import ViewSpec
from sslcli.data import workers as workers_module
from sslcli.data.crops import Cropper, Slice, split_views
from sslcli.data.plan import Plan
from sslcli.data.processes import worker_count, worker_errors
from sslcli.data.source import ResidentSource, open_source
from sslcli.data.workers import WorkerSource
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.views.pipeline import ViewMaker

CPU = torch.device("cpu")


def maker(*sizes: int, seed: int = 0) -> ViewMaker:
    """One kind of two views for each size; by default 16 and 8 pixels."""
    operations = [{"name": "crop", "options": {}}, {"name": "flip", "options": {}}]
    specs = [ViewSpec.parse({"count": 2, "size": size, "operations": operations}) for size in sizes or (16, 8)]
    return ViewMaker(specs, 3, (0.5,) * 3, (0.25,) * 3, seed)


class Uneven(Dataset):
    """Images of different sizes, each filled with its number; some cannot be read."""

    def __init__(self, length: int, unreadable: frozenset[int] = frozenset(), limit: float = 1.0) -> None:
        super().__init__(Limited(max_unreadable=limit))
        self.info = DataInfo("uneven", 3, None, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
        self.labels = torch.arange(length) % 3
        self.length, self.unreadable = length, unreadable

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        if index in self.unreadable:
            raise UnreadableImage(f"{index}.png", "damaged")
        return torch.full((3, 10 + index % 7, 12 + index % 5), index % 256, dtype=torch.uint8)


class Limited(DatasetOptions):
    max_unreadable: float = 0.01


class Broken(Uneven):
    def image(self, index: int) -> Tensor:
        raise ZeroDivisionError("a bug in the decoder")


@contextmanager
def opened(
    data: Dataset, batch_size: int, accumulate: int = 1, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[WorkerSource]:
    plan = Plan(data.info.name, len(data), batch_size, accumulate, seed, rank, world)
    source = WorkerSource(data, CPU, plan, maker(seed=seed), workers)
    try:
        yield source
    finally:
        source.close()
        assert multiprocessing.active_children() == []


def take(data: Dataset, step: int, count: int, *arguments: int, **named: int) -> list[list[SourceBatch]]:
    with opened(data, *arguments, **named) as source:
        return list(islice(source.batches(step), count))


def assert_same(first: SourceBatch, second: SourceBatch) -> None:
    assert len(first.images) == len(second.images)
    assert all(torch.equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    assert first.labels is not None
    assert second.labels is not None
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.positions, second.positions)
    assert (first.epoch, first.cropped, first.replaced) == (second.epoch, second.cropped, second.replaced)


def assert_all_same(first: list[list[SourceBatch]], second: list[list[SourceBatch]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)


def test_batch_holds_a_crop_for_each_view_and_the_label_of_each_image() -> None:
    for (batch,) in take(Uneven(50), 0, 6, 8):
        assert [tuple(view.shape) for view in batch.images] == [(8, 3, 16, 16)] * 2 + [(8, 3, 8, 8)] * 2
        for view in batch.images:
            assert view.dtype == torch.uint8
            assert torch.equal(view[:, 1, 3, 5].long(), batch.index)
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.index % 3)
        assert batch.cropped
        assert batch.replaced == ()


def test_order_shares_and_positions_are_those_of_a_resident_source() -> None:
    images = torch.zeros(60, 3, 2, 2, dtype=torch.uint8)
    for rank in range(2):
        plan = Plan("uneven", 60, 24, 3, 5, rank, 2)
        resident = list(islice(ResidentSource(Uneven(60), CPU, plan, images).batches(1), 4))
        found = take(Uneven(60), 1, 4, 24, 3, 5, rank, 2)
        for expected, batches in zip(resident, found, strict=True):
            for one, other in zip(expected, batches, strict=True):
                assert torch.equal(one.index, other.index)
                assert torch.equal(one.positions, other.positions)
                assert one.epoch == other.epoch


def test_number_of_workers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SLICE", 3)  # so that a micro-batch comes from several workers
    data = Uneven(50, unreadable=frozenset({3, 11, 40}))
    expected = take(data, 3, 8, 16, accumulate=2, seed=7)
    assert {batch.epoch for step in expected for batch in step} == {1, 2, 3}
    for workers in (1, 2):
        assert_all_same(expected, take(data, 3, 8, 16, accumulate=2, seed=7, workers=workers))


def test_size_of_slices_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Uneven(50, unreadable=frozenset({3, 11, 40}))
    expected = take(data, 0, 3, 16)
    monkeypatch.setattr(workers_module, "SLICE", 5)
    assert_all_same(expected, take(data, 0, 3, 16))


@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_stream_from_a_step_is_the_tail_of_the_stream(step: int) -> None:
    data = Uneven(50, unreadable=frozenset({3, 11, 40}))
    whole = take(data, 0, 16, 8, accumulate=2, seed=3)
    assert_all_same(whole[step:], take(data, step, 16 - step, 8, accumulate=2, seed=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_left_alone(workers: int) -> None:
    before = torch.get_rng_state()
    take(Uneven(50), 0, 2, 8, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_source_can_start_again_at_another_step() -> None:
    data = Uneven(50)
    expected = take(data, 0, 7, 8)
    with opened(data, 8, workers=1) as source:
        assert_all_same(expected[:2], list(islice(source.batches(0), 2)))
        assert_all_same(expected[4:], list(islice(source.batches(4), 3)))


def test_views_are_those_of_the_resident_path(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    data = Folder(FolderOptions(root=tmp_path))
    plan = Plan("folder", 24, 12, seed=5)
    views = maker(seed=5)
    images = torch.stack([data.image(index) for index in range(24)])
    resident = ResidentSource(data, CPU, plan, images)
    source = open_source(data, CPU, 12, seed=5, views=views, workers=1)
    assert isinstance(source, WorkerSource)
    try:
        for (expected,), (found,) in islice(zip(resident.batches(0), source.batches(0), strict=True), 3):
            sizes = torch.tensor([[30, 40]]).expand(12, 2)
            first = views.apply(expected.images, views.draw(expected.epoch, expected.positions, sizes))
            draws = views.draw(found.epoch, found.positions, None)
            second = views.apply(found.images, draws, cropped=True)
            for one, other in zip(first, second, strict=True):
                levels = (one - other).abs() * 0.25 * 255
                assert float(levels.max()) <= 2
                assert float(levels.mean()) < 0.5
            assert expected.labels is not None
            assert found.labels is not None
            assert torch.equal(expected.labels, found.labels)
    finally:
        source.close()


def test_unreadable_image_is_replaced_counted_and_named() -> None:
    good, bad = take(Uneven(40), 0, 5, 8), take(Uneven(40, unreadable=frozenset({7, 31})), 0, 5, 8)
    messages: list[str] = []
    for (before,), (after,) in zip(good, bad, strict=True):
        assert [view.shape for view in before.images] == [view.shape for view in after.images]
        untouched = (before.index != 7) & (before.index != 31)
        assert torch.equal(before.index[untouched], after.index[untouched])
        assert not {7, 31} & set(after.index.tolist())
        for one, other in zip(before.images, after.images, strict=True):
            assert torch.equal(one[untouched], other[untouched])
            assert torch.equal(other[:, 0, 0, 0].long(), after.index)
        assert after.labels is not None
        assert torch.equal(after.labels, after.index % 3)
        messages += after.replaced
    assert set(messages) == {"7.png: damaged", "31.png: damaged"}


def test_what_takes_the_place_differs_between_places_and_epochs() -> None:
    data = Uneven(60, unreadable=frozenset(range(0, 60, 2)))
    meant, found = take(Uneven(60), 0, 2, 60), take(data, 0, 2, 60)
    chosen = [after.index[before.index % 2 == 0].tolist() for (before,), (after,) in zip(meant, found, strict=True)]
    assert chosen[0] != chosen[1]
    assert all(len(set(places)) > 12 for places in chosen)  # 30 draws from 30 images: 19 different ones on average


def test_too_many_unreadable_images_end_the_run_with_their_names() -> None:
    data = Uneven(200, unreadable=frozenset(range(0, 200, 20)), limit=0.03)
    with opened(data, 100) as source, pytest.raises(SslError) as caught:
        list(islice(source.batches(0), 2))
    message = str(caught.value)
    assert "\n" not in message
    assert "of 200 images cannot be read, more than data.max_unreadable=0.03" in message
    assert message.count(".png: damaged") > 6
    assert caught.value.exit_code == 1


def test_few_unreadable_images_are_too_few_to_judge_by() -> None:
    data = Uneven(3000, unreadable=frozenset(range(0, 3000, 250)), limit=0.01)
    assert len(take(data, 0, 40, 64)) == 40  # the first batch with one would be at 1.6 %


def test_an_image_that_comes_up_again_counts_once() -> None:
    data = Uneven(40, unreadable=frozenset({7}), limit=0.025)
    assert len(take(data, 0, 50, 8)) == 50


def test_data_without_one_readable_image_end_the_run() -> None:
    data = Uneven(20, unreadable=frozenset(range(20)))
    with opened(data, 10) as source, pytest.raises(SslError, match="cannot be read"):
        next(iter(source.batches(0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_a_worker_comes_out_with_its_message_and_leaves_none_behind(workers: int) -> None:
    with opened(Broken(20), 10, workers=workers) as source:
        with pytest.raises(ZeroDivisionError, match="a bug in the decoder") as caught:
            next(iter(source.batches(0)))
        assert multiprocessing.active_children() == []
        assert caught.tb is not None


def test_close_ends_the_workers() -> None:
    with opened(Uneven(50), 8, workers=2) as source:
        batches = source.batches(0)
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        source.close()
        assert multiprocessing.active_children() == []
        source.close()


def test_signals_to_the_process_group_are_left_to_the_main_process() -> None:
    data = Uneven(50)
    with opened(data, 8, workers=1) as source:
        batches = source.batches(0)
        found = [next(batches)]
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
            os.kill(child.pid, signal.SIGTERM)
        found += islice(batches, 20)
    assert_all_same(take(data, 0, 21, 8), found)


def test_killed_worker_is_told_with_a_remedy() -> None:
    with opened(Uneven(50), 8, workers=1) as source:
        batches = source.batches(0)
        next(batches)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        message = r"^a worker process died[^\n]*training\.workers[^\n]*$"
        with pytest.raises(SslError, match=message), worker_errors():  # noqa: PT012 (it may be told at either line)
            os.kill(child.pid, signal.SIGKILL)
            list(islice(batches, 100))


def test_work_can_be_pickled_for_workers_that_are_spawned() -> None:
    cropper = Cropper(Uneven(20), maker(), 0)
    asked = Slice(1, 4, [3, 9, 2])
    first, second = cropper[asked], pickle.loads(pickle.dumps(cropper))[asked]
    assert torch.equal(first.buffer, second.buffer)
    assert first.index == second.index == [3, 9, 2]


def test_images_are_grouped_without_effect_on_their_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    cropper, asked = Cropper(Uneven(20), maker(), 0), Slice(0, 0, list(range(20)))
    expected = cropper[asked].buffer
    monkeypatch.setattr("sslcli.data.crops._GROUP_BYTES", 2000)
    assert torch.equal(cropper[asked].buffer, expected)


def test_decoders_are_told_the_size_below_which_a_view_would_lose() -> None:
    assert Cropper(Uneven(20), maker(224), 0).wanted == 915  # 224 / √(0.08 · 3/4)
    assert Cropper(Uneven(20), maker(96, 224), 0).wanted == 915
    whole = ViewSpec.parse({"size": 64, "operations": [{"name": "resize", "options": {"ratio": 1.5}}]})
    assert Cropper(Uneven(20), ViewMaker([whole], 3, (0.5,) * 3, (0.5,) * 3, 0), 0).wanted == 96


def test_split_views_shares_the_buffer() -> None:
    buffer = torch.arange(2 * (3 + 12), dtype=torch.uint8)
    small, large = split_views(buffer, 2, [(3, 1, 1), (3, 2, 2)])
    assert small.flatten().tolist() == list(range(6))
    assert large.shape == (2, 3, 2, 2)
    large[1, 2, 1, 1] = 99
    assert int(buffer[-1]) == 99


def test_auto_leaves_a_core_to_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert worker_count("auto") == 15
    assert worker_count("auto", 4) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert worker_count("auto", 64) == 7
    assert worker_count(5) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert worker_count("auto") == 1


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches() -> None:
    expected = take(Uneven(50), 0, 3, 8)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert_all_same(expected, take(Uneven(50), 0, 3, 8, workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_cuda_are_those_on_the_cpu_without_waiting_for_the_device(workers: int) -> None:
    data, plan = Uneven(200), Plan("uneven", 200, 80, 1)
    source = WorkerSource(data, torch.device("cuda"), plan, maker(), workers)
    batches = source.batches(0)
    found = [next(batches)]  # starting up may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += islice(batches, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        source.close()
    for (batch,), (expected,) in zip(found, take(data, 0, 6, 80), strict=True):
        assert batch.images[0].device.type == "cuda"
        assert_same(
            SourceBatch(
                [view.cpu() for view in batch.images], batch.cropped,
                None if batch.labels is None else batch.labels.cpu(),
                batch.index, batch.positions, batch.epoch, batch.replaced,
            ),
            expected,
        )  # fmt: skip
