"""`data.cache`: what is read from it is what would be decoded."""

from __future__ import annotations

import gc
import logging
import mmap
import os
import pickle
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import BYTES, KINDS, all_there, messages, opened, options, views, write, write_pictures
from PIL import Image

from sslcli.contracts.errors import SslError, UnreadableImage
from sslcli.contracts.source import SourceBatch
from sslcli.data.cache import file as cache_file
from sslcli.data.cache.dataset import CachedDataset, Kind
from sslcli.data.crops import Cropper, Slice
from sslcli.data.source import open_source
from sslcli.datasets.folder import Folder


@pytest.fixture
def root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO, "sslcli")
    write_pictures(tmp_path / "photographs")
    return tmp_path / "photographs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "workers"), [(1, 0), (3, 0), (3, 2)])
def test_images_within_the_bound_are_those_of_the_files(
    root: Path, kind: Kind, channels: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "_CHUNK", 2)
    assert all_there(opened(root, kind, workers=workers, channels=channels))


@pytest.mark.parametrize("kind", KINDS)
def test_crops_within_the_bound_are_bitwise_those_without_a_cache(root: Path, kind: Kind) -> None:
    asked = Slice(2, 40, list(range(10)))
    expected = Cropper(Folder(options(root)), views(), 7)[asked]
    assert torch.equal(Cropper(opened(root, kind), views(), 7)[asked].buffer, expected.buffer)


def test_photographs_that_the_decoder_reduces_are_kept_as_it_does(tmp_path: Path) -> None:
    write(tmp_path / "photographs" / "a" / "large.jpg", 700, 600, 0)
    data = opened(tmp_path / "photographs", "disk", cache_size=100)
    assert data.image_for(0, None).shape == (3, 75, 88)  # the views need 66 pixels: the decoder makes an eighth
    asked = Slice(0, 0, [0])
    assert torch.equal(Cropper(data, views(), 0)[asked].buffer, Cropper(data.dataset, views(), 0)[asked].buffer)


def test_larger_images_are_reduced_to_the_bound_and_keep_their_shape(tmp_path: Path) -> None:
    write(tmp_path / "photographs" / "a" / "wide.jpg", 400, 300, 0, quality=95)
    write(tmp_path / "photographs" / "a" / "high.png", 150, 450, 1)
    data = opened(tmp_path / "photographs", "disk", size=224, cache_size=60)
    wide, high = data.image_for(1, 915), data.image_for(0, 915)
    assert wide.shape == (3, 60, 80)
    assert high.shape == (3, 180, 60)
    with Image.open(tmp_path / "photographs" / "a" / "wide.jpg") as image:
        expected = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC)).astype(int)
    error = np.abs(wide.permute(1, 2, 0).numpy().astype(int) - expected)
    assert error.mean() < 1.5
    assert error.max() < 12


def test_the_decoder_is_asked_for_no_more_than_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[int | None] = set()
    real = Folder.image_for
    monkeypatch.setattr(
        Folder, "image_for", lambda self, index, wanted: [asked.add(wanted), real(self, index, wanted)][1]
    )
    opened(root, "memory", size=224, cache_size=64)
    opened(root, "memory", size=16, cache_size=256)
    assert asked == {64, 66}


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images_fail_as_without_a_cache(root: Path, kind: Kind, caplog: Any) -> None:
    (root / "class0" / "2.jpg").write_bytes((root / "class0" / "2.jpg").read_bytes()[:300])
    (root / "class1" / "3.jpg").write_text("no image")
    data = opened(root, kind)
    for index in (1, 6):
        with pytest.raises(UnreadableImage) as without:
            data.dataset.image(index)
        with pytest.raises(UnreadableImage) as found:
            data.image_for(index, None)
        assert str(found.value) == str(without.value)
    asked = Slice(0, 0, list(range(10)))
    ours, theirs = Cropper(data, views(), 0)[asked], Cropper(data.dataset, views(), 0)[asked]
    assert torch.equal(ours.buffer, theirs.buffer)
    assert ours.unreadable == theirs.unreadable
    assert {index for index, _ in ours.unreadable} >= {1, 6}
    assert any("8 of 10 images (the others could not be read" in line for line in messages(caplog)) is (kind == "disk")


def batches(data: Folder | CachedDataset, workers: int) -> list[SourceBatch]:
    source = open_source(data, torch.device("cpu"), 5, views=views(), workers=workers)
    try:
        return [batch for (batch,) in islice(source.batches(0), 5)]
    finally:
        source.close()


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_read_the_cache_and_decode_nothing(
    root: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(Folder(options(root)), 0)
    data = opened(root, kind)
    monkeypatch.setattr(Folder, "image_for", None)
    for before, after in zip(expected, batches(data, 1), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before.images, after.images, strict=True))
        assert torch.equal(before.index, after.index)


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_opens_the_same_file_or_none(root: Path, kind: Kind) -> None:
    data = opened(root, kind)
    sent = pickle.dumps(data)
    assert len(sent) < 8000 < BYTES
    assert torch.equal(pickle.loads(sent).image_for(4, None), data.image_for(4, None))
    if kind == "disk":
        os.utime(root / "class0" / "2.jpg", ns=(1, 1))
        opened(root, "disk")
        with pytest.raises(SslError):
            pickle.loads(sent)


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice")
def test_the_images_of_a_slice_are_fetched_before_the_first_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "class1" / "3.jpg").write_text("no image")
    data = opened(root, "disk")
    assert data._images is not None
    events: list[Any] = []
    monkeypatch.setattr(
        data._images, "_mapped", type("Mapped", (), {"madvise": lambda _, *advice: events.append(advice)})()
    )
    real = CachedDataset.image_for
    monkeypatch.setattr(CachedDataset, "image_for", lambda *asked: [events.append("read"), real(*asked)][1])
    Cropper(data, views(), 0)[Slice(0, 0, [9, 6, 2, 4])]  # the second cannot be read
    assert events[4] == "read"
    for index, (advice, start, size) in zip([9, 6, 2, 4], events[:4], strict=True):
        height, width = data._images.shapes[index].tolist()
        offset = int(data._images.starts[index])
        assert advice == mmap.MADV_WILLNEED
        assert start == offset - offset % mmap.PAGESIZE
        assert start + size == offset + height * width * 3


def reachable(start: object) -> int:
    """How many Python objects can be reached from one, except classes and modules."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | type(os) | type(reachable)):
            seen.add(id(one))
            waiting += gc.get_referents(one)
    return len(seen)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_workers_are_sent_no_object_for_each_image(tmp_path: Path, kind: Kind) -> None:
    counts = []
    for length in (3, 300):
        folder = tmp_path / str(length)
        write(folder / "a" / "0.png", 8, 6, 0)
        for number in range(1, length):
            shutil.copyfile(folder / "a" / "0.png", folder / "a" / f"{number}.png")
        data = Folder(options(folder)) if kind == "none" else opened(folder, kind)
        counts.append(reachable(Cropper(data, views(), 0)))
    assert abs(counts[1] - counts[0]) < 50  # small integers may be shared or not
