"""`data.cache`: what is read from it is what would be decoded, and whatever happens to its files is noticed."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sslcli.contracts.data import SourceBatch
from sslcli.contracts.errors import SslError, UnreadableImage, UserError
from sslcli.contracts.views import ViewSpec
from sslcli.data.cache import build as cache_build
from sslcli.data.cache import dataset as cached
from sslcli.data.cache import disk as cache_disk
from sslcli.data.cache import file as cache_file
from sslcli.data.cache.build import Bound
from sslcli.data.cache.dataset import CachedDataset, Kind, open_cached
from sslcli.data.crops import Cropper, Slice, wanted_side
from sslcli.data.decode import decoded_size
from sslcli.data.source import open_source
from sslcli.data.workers import WorkerSource
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.images import Images, ImagesOptions
from sslcli.datasets.shapes import Shapes
from sslcli.views.pipeline import ViewMaker

#: Of the ten pictures below, as pixels.
BYTES = 3 * (sum((30 + 3 * number) * (23 + number) for number in range(8)) + 33 * 21 + 40 * 26)
KINDS: tuple[Kind, ...] = ("memory", "disk")


def write(path: Path, width: int, height: int, seed: int, **named: object) -> None:
    """A smooth picture, so that a JPEG of it is nearly the same at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **named)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten pictures of different sizes and formats, the shorter side 30 pixels at most."""
    folder = tmp_path / "photographs"
    for number in range(8):
        write(folder / f"class{number % 2}" / f"{number}.jpg", 30 + 3 * number, 23 + number, number, quality=95)
    write(folder / "class0" / "gray.png", 33, 21, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    write(folder / "class1" / "turned.jpg", 40, 26, 9, exif=turned)
    return folder


def options(root: Path, **changes: object) -> FolderOptions:
    return FolderOptions.parse({"root": str(root), "cache_dir": str(root.parent / "cache"), **changes})


def maker(size: int = 16) -> ViewMaker:
    operations = [{"name": "crop", "options": {}}, {"name": "flip", "options": {}}]
    return ViewMaker(
        [ViewSpec.parse({"count": 2, "size": size, "operations": operations})], 3, (0.5,) * 3, (0.25,) * 3, 0
    )


def opened(root: Path, kind: Kind, told: list[str] | None = None, size: int = 16, **changes: object) -> CachedDataset:
    """A cache that is ready."""
    data = CachedDataset(Folder(options(root, **changes)), wanted_side(maker(size)), kind, workers=0)
    data.prepare((told if told is not None else []).append)
    return data


def pixel_files(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").glob("*.pixels"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_within_the_bound_are_those_of_the_files(root: Path, kind: Kind, channels: int) -> None:
    data = opened(root, kind, channels=channels)
    assert data._pixels is not None
    for index in range(10):
        found = data._pixels[index]
        assert found is not None
        assert torch.equal(found, data.dataset.image(index))


@pytest.mark.parametrize("kind", KINDS)
def test_crops_within_the_bound_are_to_the_bit_those_without_a_cache(root: Path, kind: Kind) -> None:
    asked = Slice(2, 40, list(range(10)))
    expected = Cropper(Folder(options(root)), maker(), 7)[asked]
    assert torch.equal(Cropper(opened(root, kind), maker(), 7)[asked].buffer, expected.buffer)


def test_photographs_that_the_decoder_reduces_are_kept_as_it_does(tmp_path: Path) -> None:
    write(tmp_path / "photographs" / "a" / "large.jpg", 700, 600, 0)
    views = maker(16)  # wants 66 pixels: the decoder makes an eighth, 75
    data = opened(tmp_path / "photographs", "disk", size=16, cache_size=100)
    assert data.image_for(0, None).shape == (3, 75, 88)
    asked = Slice(0, 0, [0])
    assert torch.equal(Cropper(data, views, 0)[asked].buffer, Cropper(data.dataset, views, 0)[asked].buffer)


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
    assert asked == {64}
    assert Bound.of(256, 66) == Bound(256, 66)
    assert Bound.of(256, None) == Bound(256, 256)


def test_a_later_run_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(root, "disk")
    expected = [first.image_for(index, None).clone() for index in range(10)]
    monkeypatch.setattr(cache_disk, "decode_into", None)
    monkeypatch.setattr(Folder, "image_for", None)
    told: list[str] = []
    second = opened(root, "disk", told)
    assert all(torch.equal(second.image_for(index, None), image) for index, image in enumerate(expected))
    assert told == [f"data.cache: 10 images from {pixel_files(root)[0]} (31.3 kB)"]


def test_the_size_is_told_before_anything_is_written_and_is_exact(root: Path) -> None:
    seen: list[tuple[str, int]] = []
    data = CachedDataset(Folder(options(root)), wanted_side(maker()), "disk", workers=0)
    data.prepare(lambda line: seen.append((line, sum(file.stat().st_size for file in pixel_files(root)))))
    assert [size for _, size in seen] == [0, BYTES]
    line = seen[0][0]
    assert "decoding 10 images once, the shorter side at most 256 pixels: 31.3 kB in " in line


def test_changed_and_new_files_are_decoded_again_and_no_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(root, "disk")
    write(root / "class0" / "2.jpg", 31, 25, 77)
    write(root / "class1" / "new.jpg", 29, 22, 78)
    decoded: list[int] = []
    real = Folder.image_for
    monkeypatch.setattr(
        Folder, "image_for", lambda self, index, wanted: [decoded.append(index), real(self, index, wanted)][1]
    )
    told: list[str] = []
    data = opened(root, "disk", told)
    assert sorted(data.name_of(index) for index in decoded) == ["class0/2.jpg", "class1/new.jpg"]
    assert "data.cache: 1 of the images have changed since they were decoded" in told
    assert len(pixel_files(root)) == 1
    for index in range(11):
        assert torch.equal(data.image_for(index, None), data.dataset.image(index))


def test_a_file_with_another_time_is_another(root: Path) -> None:
    opened(root, "disk")
    os.utime(root / "class0" / "2.jpg", ns=(1, 1))
    told: list[str] = []
    opened(root, "disk", told)
    assert any("decoding 1 images" in line for line in told)


def test_a_file_that_is_mostly_outdated_is_begun_again(root: Path) -> None:
    opened(root, "disk")
    (before,) = pixel_files(root)
    for file in root.rglob("*.*"):
        os.utime(file, ns=(5, 5))
    opened(root, "disk")
    (after,) = pixel_files(root)
    assert after != before
    assert after.stat().st_size == BYTES


def test_a_part_of_the_images_uses_the_cache_of_all_and_leaves_it_whole(root: Path) -> None:
    opened(root, "disk")
    told: list[str] = []
    opened(root, "disk", told, limit=4)
    opened(root, "disk", told)
    assert not any("decoding" in line for line in told)


def test_other_channels_and_bounds_have_files_of_their_own(root: Path) -> None:
    for changes in ({}, {"channels": 1}, {"cache_size": 16}):
        opened(root, "disk", **changes)
    assert len(pixel_files(root)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images_fail_as_without_a_cache(root: Path, kind: Kind) -> None:
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
    ours, theirs = Cropper(data, maker(), 0)[asked], Cropper(data.dataset, maker(), 0)[asked]
    assert torch.equal(ours.buffer, theirs.buffer)
    assert ours.unreadable == theirs.unreadable
    assert {place for place, _ in ours.unreadable} >= {1, 6}


def test_unreadable_images_are_tried_once_for_all_runs(root: Path) -> None:
    (root / "class1" / "3.jpg").write_text("no image")
    opened(root, "disk")
    told: list[str] = []
    opened(root, "disk", told)
    assert len(told) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["file", "header"])
def test_what_the_system_failed_to_read_is_tried_again(
    root: Path, kind: Kind, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.image_for

    def broken(self: Folder, index: int, wanted: int | None) -> torch.Tensor:
        if index == 3:
            raise UnreadableImage("3.jpg", "Input/output error") from OSError(errno.EIO, "Input/output error")
        return real(self, index, wanted)

    def blind(path: Path, wanted: int | None) -> tuple[int, int] | None:
        return None if path.name == "6.jpg" else decoded_size(path, wanted)

    told: list[str] = []
    with monkeypatch.context() as patch:
        if where == "file":
            patch.setattr(Folder, "image_for", broken)
        else:
            patch.setattr(cache_build, "decoded_size", blind)
        data = opened(root, kind, told)
    assert "data.cache: 9 of 10 images " in told[-1]
    assert told[-1].endswith("; the others are decoded when they are asked for")
    assert torch.equal(data.image_for(3, None), data.dataset.image(3))
    told.clear()
    opened(root, kind, told)
    assert f"decoding {1 if kind == 'disk' else 10} images" in told[0]
    assert not any(" of 10 " in line for line in told)


def test_an_image_of_another_size_than_its_header_tells_is_not_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_build, "decoded_size", lambda path, wanted: (20, 20))
    data = opened(root, "disk")
    for index in range(10):
        assert torch.equal(data.image_for(index, None), data.dataset.image(index))


@pytest.mark.parametrize("damage", ["index", "cut index", "pixels", "no pixels"])
def test_damage_is_noticed_told_in_one_line_and_mended(root: Path, damage: str) -> None:
    opened(root, "disk")
    (index,), (pixels,) = (root.parent / "cache").glob("*.index"), pixel_files(root)
    content = index.read_bytes()
    if damage == "index":
        index.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "cut index":
        index.write_bytes(content[:20])
    elif damage == "pixels":
        os.truncate(pixels, pixels.stat().st_size - 1)
    else:
        pixels.unlink()
    told: list[str] = []
    data = opened(root, "disk", told)
    assert sum("the images are decoded again" in line for line in told) == 1
    assert len(pixel_files(root)) == 1
    assert torch.equal(data.image_for(3, None), data.dataset.image(3))


def test_an_interrupted_build_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_CHUNK", 3)
    real, decoded = Folder.image_for, []

    def stopped(self: Folder, index: int, wanted: int | None) -> torch.Tensor:
        if index == 7:
            raise KeyboardInterrupt
        return real(self, index, wanted)

    monkeypatch.setattr(Folder, "image_for", stopped)
    with pytest.raises(KeyboardInterrupt):
        opened(root, "disk")
    monkeypatch.setattr(
        Folder, "image_for", lambda self, index, wanted: [decoded.append(index), real(self, index, wanted)][1]
    )
    data = opened(root, "disk")
    assert decoded == [6, 7, 8, 9]
    assert all(torch.equal(data.image_for(index, None), data.dataset.image(index)) for index in range(10))


class Stopper:
    """Interrupts a build before one of the lines of `_append`, as Ctrl-C may."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: object) -> Stopper | None:
        if frame.f_code is not cache_disk._append.__code__:
            return None
        if event == "line":
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            self.left -= 1
        return self


def test_an_interruption_at_any_line_leaves_an_index_that_is_true(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_CHUNK", 4)
    expected = [Folder(options(root)).image(index) for index in range(10)]
    before = sys.gettrace()
    for line in count():
        shutil.rmtree(root.parent / "cache", ignore_errors=True)
        sys.settrace(Stopper(line))
        try:
            opened(root, "disk")
        except KeyboardInterrupt:
            finished = False
        else:
            finished = True
        finally:
            sys.settrace(before)
        os.utime(root / "class0" / "0.jpg", ns=(line + 1, line + 1))  # so that other pixels follow what is there
        data = opened(root, "disk")
        assert all(torch.equal(data.image_for(index, None), image) for index, image in enumerate(expected))
        if finished:
            break
    assert line > 30


def test_pixels_that_may_be_lost_are_spoken_of_by_no_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = cache_file._sync, []

    def once(path: Path) -> None:
        if path.suffix == ".pixels" and path.stat().st_size and not failures:
            failures.append(path)
            raise OSError(errno.EIO, "Input/output error")
        real(path)

    monkeypatch.setattr(cache_file, "_sync", once)
    with pytest.raises(SslError, match=r"^data\.cache: Input/output error$"):
        opened(root, "disk")
    told: list[str] = []
    opened(root, "disk", told)
    assert "decoding 10 images" in told[0]


def test_a_worker_that_dies_during_a_commit_is_told_with_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, deaths = cache_file.CacheFolder.write, []

    def interrupted(self: cache_file.CacheFolder, index: cache_file.Index) -> None:
        if len(index.rows) and not deaths:
            deaths.append(index)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # torch's signal handler
        real(self, index)

    monkeypatch.setattr(cache_file.CacheFolder, "write", interrupted)
    with pytest.raises(SslError, match=r"^a worker process died[^\n]*data\.cache=disk[^\n]*$"):
        opened(root, "disk")
    told: list[str] = []
    opened(root, "disk", told)
    assert len(told) == 1


def test_a_reader_of_the_lines_who_has_gone_is_no_worker_that_died(root: Path) -> None:
    def gone(line: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        CachedDataset(Folder(options(root)), 66, "disk", workers=0).prepare(gone)


def test_errors_under_the_lock_are_not_laid_to_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(cache_build, "loader", refused)
    with pytest.raises(SslError, match=r"^data\.cache: Cannot allocate memory$"):
        opened(root, "disk")


def test_a_variable_of_a_group_that_is_none_does_no_harm(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert opened(root, "memory").image_for(3, None).shape[0] == 3


def test_pixels_of_a_folder_with_odd_letters_are_removed_too(root: Path) -> None:
    odd = root.rename(root.parent / "photographs [1] *?")
    opened(odd, "disk")
    for file in odd.rglob("*.*"):
        os.utime(file, ns=(5, 5))
    opened(odd, "disk")
    assert len(pixel_files(odd)) == 1


def test_what_lies_behind_the_last_row_is_written_over(root: Path) -> None:
    opened(root, "disk")
    (pixels,) = pixel_files(root)
    with pixels.open("ab") as file:
        file.write(b"\1" * 5000)  # as a process leaves it that is killed before its index is written
    write(root / "class0" / "0.jpg", 30, 23, 99)
    data = opened(root, "disk")
    assert pixels.stat().st_size == BYTES + 30 * 23 * 3
    assert torch.equal(data.image_for(0, None), data.dataset.image(0))


def test_what_is_being_read_stays_when_another_process_begins_again(root: Path) -> None:
    data = opened(root, "disk")
    expected = [data.image_for(index, None).clone() for index in range(10)]
    for file in root.rglob("*.*"):
        shutil.copyfile(root / "class0" / "gray.png", file) if file.name != "gray.png" else os.utime(file, ns=(5, 5))
    opened(root, "disk")
    assert all(torch.equal(data.image_for(index, None), image) for index, image in enumerate(expected))


@pytest.mark.parametrize(("kind", "free"), [("disk", "free_disk"), ("memory", "available_memory")])
def test_too_little_room_is_refused_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, free: str
) -> None:
    monkeypatch.setattr(cached, free, lambda *_: BYTES - 1)
    with pytest.raises(UserError, match=rf"^data\.cache: {kind}: the images take 31\.3 kB[^\n]*31\.3 kB[^\n]*$"):
        open_cached(Folder(options(root, cache=kind)), 66, 100, 0, print)
    assert not (root.parent / "cache").exists()
    monkeypatch.setattr(cached, free, lambda *_: BYTES)
    assert isinstance(open_cached(Folder(options(root, cache=kind)), 66, 100, 0, print), CachedDataset)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(root: Path) -> None:
    (root.parent / "cache").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"^data\.cache_dir: [^\n]*$"):
        opened(root, "disk")


def test_a_file_in_the_place_of_the_folder_is_refused(root: Path) -> None:
    (root.parent / "cache").write_text("")
    with pytest.raises(UserError, match=r"^data\.cache_dir: cannot (read|write to) [^\n]*; set it to another folder$"):
        opened(root, "disk")


@pytest.mark.parametrize(
    ("memory", "disk", "passes", "kind"),
    [
        (10**6, 10**6, 100, "memory"),
        (40_000, 10**6, 100, "disk"),
        (40_000, 40_000, 100, "none"),
        (None, 10**6, 100, "disk"),
        (0, 10**6, 100, "disk"),
        (10**6, 10**6, 1.9, "none"),
    ],
)
def test_auto_takes_memory_then_disk_then_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None, disk: int, passes: float, kind: Kind
) -> None:
    monkeypatch.setattr(cached, "available_memory", lambda: memory)
    monkeypatch.setattr(cached, "free_disk", lambda folder: disk)
    told: list[str] = []
    data = open_cached(Folder(options(root, cache="auto")), 66, passes, 0, told.append)
    assert (data.kind if isinstance(data, CachedDataset) else "none") == kind
    assert len(told) == 1
    assert told[0].startswith(f"data.cache: auto is {kind}")


def test_auto_takes_what_is_on_the_disk_already(root: Path) -> None:
    opened(root, "disk")
    told: list[str] = []
    data = open_cached(Folder(options(root, cache="auto")), 66, 1, 0, told.append)
    assert isinstance(data, CachedDataset)
    assert data.kind == "disk"
    assert told == ["data.cache: auto is disk: all images are there already"]


@pytest.mark.parametrize(("free", "refused"), [(0, True), (None, False)])
def test_no_memory_is_refused_and_an_unknown_amount_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, refused: bool
) -> None:
    monkeypatch.setattr(cached, "available_memory", lambda: free)
    with pytest.raises(UserError, match=r"^data\.cache: memory: ") if refused else nullcontext():
        open_cached(Folder(options(root, cache="memory")), 66, 100, 0, print)


def test_without_the_option_and_for_other_data_there_is_no_cache(root: Path) -> None:
    data = Folder(options(root))
    assert open_cached(data, 66, 100, 0, print) is data
    with pytest.raises(ValidationError):
        Shapes.Options.parse({"cache": "disk"})
    assert FolderOptions.resume_rule("cache") == FolderOptions.resume_rule("cache_size") == "warn"
    assert FolderOptions.resume_rule("cache_dir") == "free"


def batches(data: Folder | CachedDataset, workers: int) -> list[SourceBatch]:
    source = open_source(data, torch.device("cpu"), 5, views=maker(), workers=workers)
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
def test_several_processes_decode_what_one_would(root: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_CHUNK", 2)
    data = CachedDataset(Folder(options(root)), 66, kind, workers=2)
    data.prepare(print)
    assert data._pixels is not None
    for index in range(10):
        found = data._pixels[index]
        assert found is not None
        assert torch.equal(found, data.dataset.image(index))


@pytest.mark.parametrize("kind", KINDS)
def test_a_spawned_worker_gets_the_path_of_the_pixels_and_not_a_copy(root: Path, kind: Kind) -> None:
    data = opened(root, kind)
    sent = pickle.dumps(data)
    assert len(sent) < 8000 < BYTES
    assert torch.equal(pickle.loads(sent).image_for(4, None), data.image_for(4, None))


class Advised:
    """In the place of mapped pixels: what the system was asked to fetch."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def madvise(self, advice: int, start: int, size: int) -> None:
        self.asked.append((advice, start, size))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no advice")
def test_the_images_of_a_slice_are_fetched_before_the_first_of_them_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "class1" / "3.jpg").write_text("no image")
    data = opened(root, "disk")
    assert data._pixels is not None
    advised: Any = Advised()
    data._pixels._mapped = advised
    real, at_first = CachedDataset.image_for, []

    def read(self: CachedDataset, index: int, wanted: int | None) -> torch.Tensor:
        at_first.append(len(advised.asked))
        return real(self, index, wanted)

    monkeypatch.setattr(CachedDataset, "image_for", read)
    asked = [9, 6, 2, 4]  # the second cannot be read
    Cropper(data, maker(), 0)[Slice(0, 0, asked)]
    assert at_first[0] == len(advised.asked) == 3
    for place, (advice, start, size) in zip([9, 2, 4], advised.asked, strict=True):
        offset, height, width = data._pixels.places[place].tolist()
        assert advice == mmap.MADV_WILLNEED
        assert start % mmap.PAGESIZE == 0
        assert offset - mmap.PAGESIZE < start <= offset
        assert start + size == offset + height * width * 3


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_CHUNK", 4)
    real = cache_build._Writer.__getitem__

    def full(self: cache_build._Writer, task: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray | str:
        return "No space left on device" if 9 in task[0] else real(self, task)

    monkeypatch.setattr(cache_build._Writer, "__getitem__", full)
    with pytest.raises(SslError, match=r"^data\.cache: cannot write [^\n]*: No space left on device$"):
        opened(root, "disk")
    monkeypatch.setattr(cache_build._Writer, "__getitem__", real)
    told: list[str] = []
    opened(root, "disk", told)
    assert any("decoding 2 images" in line for line in told)


def reachable(start: object) -> int:
    """How many Python objects hang on one, classes and modules aside."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | type(os) | type(reachable)):
            seen.add(id(one))
            waiting += gc.get_referents(one)
    return len(seen)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_a_worker_is_given_no_object_for_each_image(tmp_path: Path, kind: Kind) -> None:
    counts = []
    for length in (3, 300):
        folder = tmp_path / str(length)
        write(folder / "a" / "0.png", 8, 6, 0)
        for number in range(1, length):
            os.link(folder / "a" / "0.png", folder / "a" / f"{number}.png")
        data = Folder(options(folder)) if kind == "none" else opened(folder, kind)
        counts.append(reachable(Cropper(data, maker(), 0)))
    assert counts[0] == counts[1]


BUILD = """
import sys
from pathlib import Path
from sslcli.data import cache_disk
from sslcli.data.cache.dataset import CachedDataset
from sslcli.datasets.folder import Images, ImagesOptions
cache_disk.COMMIT_EVERY = 0.0
root = Path(sys.argv[1])
data = CachedDataset(Images(ImagesOptions(root=root, cache_dir=root.parent / "cache")), 300, "disk", workers=2)
data.prepare(lambda line: print(line, flush=True))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_cache_that_the_next_goes_on_with(tmp_path: Path) -> None:
    root = tmp_path / "photographs"
    for number in range(1500):
        write(root / f"{number}.jpg", 500, 375, number)
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(root)], stdout=subprocess.PIPE, start_new_session=True)
    files = CachedDataset(Images(ImagesOptions(root=root, cache_dir=tmp_path / "cache")), 300, "disk").files
    done = 0
    while done < 200:
        assert process.poll() is None
        time.sleep(0.02)
        index = files.read()
        done = 0 if index is None else len(index.rows)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told: list[str] = []
    data = CachedDataset(Images(ImagesOptions(root=root, cache_dir=tmp_path / "cache")), 300, "disk", workers=1)
    data.prepare(told.append)
    left = next(int(line.split()[2].replace(",", "")) for line in told if "decoding" in line)
    assert 0 < left <= 1500 - 200
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for index in range(0, 1500, 7):
        assert data._pixels is not None
        found = data._pixels[index]
        assert found is not None
        assert torch.equal(found, data.bound.image(data.dataset, index))


@pytest.mark.slow
def test_two_processes_that_build_at_once_make_one_cache(tmp_path: Path) -> None:
    root = tmp_path / "photographs"
    for number in range(300):
        write(root / f"{number}.jpg", 500, 375, number)
    command = [sys.executable, "-c", BUILD, str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("decoding" in text for text in told) == [False, True]
    assert sum("waiting for another process" in text for text in told) <= 1


def test_a_source_tells_who_does_what(root: Path) -> None:
    for workers, who in (
        (0, "the training process itself"),
        (1, "a worker process of its own"),
        (3, "3 worker processes"),
    ):
        told: list[str] = []
        source = open_source(Folder(options(root)), torch.device("cpu"), 5, views=maker(), workers=workers)
        assert isinstance(source, WorkerSource)
        source.prepare(told.append)
        assert told == [f"training.workers: {who} will decode and crop the images"]
