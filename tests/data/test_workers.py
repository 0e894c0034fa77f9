"""Sources whose images are decoded and cropped by workers: the same batches, however the work is divided."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_helpers import CPU, Uneven, assert_all_same, opened, take, views
from torch import Tensor

from sslcli.contracts.errors import SslError
from sslcli.contracts.views import ViewSpec
from sslcli.data import workers as workers_module
from sslcli.data.crops import Cropper, Slice, split_views, wanted_side
from sslcli.data.plan import Plan
from sslcli.data.source import ResidentSource, open_source
from sslcli.data.workers import WorkerSource
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.modules import as_one_batch
from sslcli.views.pipeline import ViewMaker


class Broken(Uneven):
    def image(self, index: int) -> Tensor:
        raise ZeroDivisionError("a bug in the decoder")


def test_a_batch_has_a_crop_for_each_view_and_the_label_of_each_image() -> None:
    for (batch,) in take(Uneven(50), 0, 6, 8):
        assert [tuple(view.shape) for view in batch.images] == [(8, 3, 16, 16)] * 2 + [(8, 3, 8, 8)] * 2
        for view in batch.images:
            assert view.dtype == torch.uint8
            assert torch.equal(view[:, 1, 3, 5].long(), batch.index)
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.index % 3)
        assert batch.cropped
        assert batch.replaced == ()


@pytest.mark.parametrize("size", [32, 3])  # one slice, and several
def test_adjacent_views_of_one_size_follow_in_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SLICE", size)
    for (batch,) in take(Uneven(50), 0, 2, 8):
        for pair in (batch.images[:2], batch.images[2:]):
            assert as_one_batch(pair).data_ptr() == pair[0].data_ptr()


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


@pytest.mark.parametrize(("workers", "size"), [(0, 5), (1, 3), (2, 3)])  # a micro-batch comes from several workers
def test_neither_workers_nor_slices_change_anything(workers: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Uneven(50, {3, 11, 40})
    expected = take(data, 3, 8, 16, accumulate=2, seed=7)
    assert {batch.epoch for step in expected for batch in step} == {1, 2, 3}
    monkeypatch.setattr(workers_module, "SLICE", size)
    assert_all_same(expected, take(data, 3, 8, 16, accumulate=2, seed=7, workers=workers))


@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_the_stream_from_a_step_is_the_tail_of_the_stream(step: int) -> None:
    data = Uneven(50, {3, 11, 40})
    whole = take(data, 0, 16, 8, accumulate=2, seed=3)
    assert_all_same(whole[step:], take(data, step, 16 - step, 8, accumulate=2, seed=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_left_alone(workers: int) -> None:
    before = torch.get_rng_state()
    take(Uneven(50), 0, 2, 8, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_can_start_again_at_another_step() -> None:
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
    plan, maker = Plan("folder", 24, 12, seed=5), views(seed=5)
    images = torch.stack([data.image(index) for index in range(24)])
    resident = ResidentSource(data, CPU, plan, images)
    source = open_source(data, CPU, 12, seed=5, views=maker, workers=1)
    assert isinstance(source, WorkerSource)
    try:
        for (expected,), (found,) in islice(zip(resident.batches(0), source.batches(0), strict=True), 3):
            sizes = torch.tensor([[30, 40]]).expand(12, 2)
            first = maker.apply(expected.images, maker.draw(expected.epoch, expected.positions, sizes))
            draws = maker.draw(found.epoch, found.positions, None)
            second = maker.apply(found.images, draws, cropped=True)
            for one, other in zip(first, second, strict=True):
                levels = (one - other).abs() * 0.25 * 255
                assert float(levels.max()) <= 2
                assert float(levels.mean()) < 0.5
            assert expected.labels is not None
            assert found.labels is not None
            assert torch.equal(expected.labels, found.labels)
    finally:
        source.close()


def test_an_unreadable_image_is_replaced_counted_and_named() -> None:
    good, bad = take(Uneven(40), 0, 5, 8), take(Uneven(40, {7, 31}), 0, 5, 8)
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


def test_replacements_differ_between_positions_and_epochs() -> None:
    data = Uneven(60, range(0, 60, 2))
    meant, found = take(Uneven(60), 0, 2, 60), take(data, 0, 2, 60)
    replacements = [
        after.index[before.index % 2 == 0].tolist() for (before,), (after,) in zip(meant, found, strict=True)
    ]
    assert replacements[0] != replacements[1]
    assert all(
        len(set(indices)) > 12 for indices in replacements
    )  # 30 draws from 30 images: 19 different ones on average


def test_too_many_unreadable_images_end_the_run_with_their_names() -> None:
    data = Uneven(200, range(0, 200, 20), limit=0.03)
    with opened(data, 100) as source, pytest.raises(SslError) as caught:
        list(islice(source.batches(0), 2))
    message = str(caught.value)
    assert "\n" not in message
    assert "of 200 images cannot be read, more than data.max_unreadable=0.03" in message
    assert message.count(".png: damaged") > 6
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("data", "steps", "batch"),
    [
        (Uneven(3000, range(0, 3000, 250), limit=0.01), 40, 64),  # the first batch with one would be at 1.6%
        (Uneven(40, {7}, limit=0.025), 50, 8),  # comes up again each epoch, and counts once
    ],
)
def test_the_share_of_unreadable_images_is_of_many_and_counts_each_once(data: Uneven, steps: int, batch: int) -> None:
    assert len(take(data, 0, steps, batch)) == steps


def test_data_without_one_readable_image_end_the_run() -> None:
    data = Uneven(20, range(20))
    with opened(data, 10) as source, pytest.raises(SslError, match="cannot be read"):
        next(iter(source.batches(0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_keeps_its_message_and_leaves_no_process_behind(workers: int) -> None:
    with opened(Broken(20), 10, workers=workers) as source:
        with pytest.raises(ZeroDivisionError, match="a bug in the decoder") as caught:
            next(iter(source.batches(0)))
        assert multiprocessing.active_children() == []
        assert caught.tb is not None


def test_work_can_be_pickled_for_workers_that_are_spawned() -> None:
    cropper = Cropper(Uneven(20), views(), 0)
    asked = Slice(1, 4, [3, 9, 2])
    first, second = cropper[asked], pickle.loads(pickle.dumps(cropper))[asked]
    assert torch.equal(first.buffer, second.buffer)
    assert first.index == second.index == [3, 9, 2]


def test_images_are_grouped_without_effect_on_their_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    cropper, asked = Cropper(Uneven(20), views(), 0), Slice(0, 0, list(range(20)))
    expected = cropper[asked].buffer
    monkeypatch.setattr("sslcli.data.crops._GROUP_BYTES", 2000)
    assert torch.equal(cropper[asked].buffer, expected)


def test_decoders_get_the_size_below_which_a_view_would_lose_detail() -> None:
    assert wanted_side(views(224)) == 915  # 224 / √(0.08 · 3/4)
    assert wanted_side(views(96, 224)) == wanted_side(views(96), views(224)) == 915
    whole = ViewSpec.parse({"size": 64, "operations": [{"name": "resize", "options": {"ratio": 1.5}}]})
    assert wanted_side(ViewMaker([whole], 3, (0.5,) * 3, (0.5,) * 3, 0)) == 96


def test_split_views_shares_the_buffer() -> None:
    buffer = torch.arange(2 * (3 + 12), dtype=torch.uint8)
    small, large = split_views(buffer, 2, [(3, 1, 1), (3, 2, 2)])
    assert small.flatten().tolist() == list(range(6))
    assert large.shape == (2, 3, 2, 2)
    large[1, 2, 1, 1] = 99
    assert int(buffer[-1]) == 99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_cuda_are_those_on_the_cpu_without_waiting_for_the_device(workers: int) -> None:
    data, plan = Uneven(200), Plan("uneven", 200, 80, 1)
    source = WorkerSource(data, torch.device("cuda"), plan, views(), workers)
    batches = source.batches(0)
    found = [next(batches)]  # starting up may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += islice(batches, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        source.close()
    assert {view.device.type for (batch,) in found for view in batch.images} == {"cuda"}
    assert_all_same(found, take(data, 0, 6, 80))


@pytest.mark.parametrize(
    ("workers", "who"), [(0, "the training process itself"), (1, "1 worker process"), (3, "3 worker processes")]
)
def test_a_source_reports_who_does_what(workers: int, who: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sslcli")
    with opened(Uneven(20), 10, workers=workers) as source:
        source.prepare(print)  # as older scripts call it
    assert caplog.messages == [f"training.workers: {who} will decode and crop the images"]
