"""Which room an image cache may take, and what `auto` chooses."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import BYTES, KINDS, messages, opened, options, unopened, write_pictures
from pydantic import ValidationError
from run_helpers import full_disk

from sslcli.contracts.errors import SslError, UserError
from sslcli.data.cache import dataset as cached
from sslcli.data.cache import room
from sslcli.data.cache.dataset import CachedDataset, Kind, open_cached
from sslcli.data.cache.room import available_memory, free_disk
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.shapes import Shapes


@pytest.fixture
def root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO, "sslcli")
    write_pictures(tmp_path / "photographs")
    return tmp_path / "photographs"


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_room_is_refused_before_anything_is_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    free = "available_memory" if kind == "memory" else "free_disk"
    monkeypatch.setattr(cached, free, lambda *_: BYTES - 1)
    with pytest.raises(UserError) as caught:
        opened(root, kind)
    assert str(caught.value).startswith(f"data.cache: {kind}: the images take about 31.3 kB, and 31.3 kB is free")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(cached, free, lambda *_: BYTES)
    opened(root, kind)


def test_an_unknown_amount_of_memory_is_not_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "available_memory", lambda: None)
    opened(root, "memory")


def test_a_disk_that_cannot_be_looked_at_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> int:
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(cached, "free_disk", fail)
    with pytest.raises(SslError, match=r"^data\.cache: /[^\n]*: Input/output error$"):
        open_cached(Folder(options(root, cache="auto")), 66, 100, 0)


def test_the_size_of_many_images_is_estimated_from_a_sample(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_SAMPLE", 5)
    assert unopened(root, "memory").estimate() == pytest.approx(BYTES, rel=0.3)


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
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, memory: int | None, disk: int, passes: Any, kind: Kind
) -> None:
    monkeypatch.setattr(cached, "available_memory", lambda: memory)
    monkeypatch.setattr(cached, "free_disk", lambda folder: disk)
    data = open_cached(Folder(options(root, cache="auto")), 66, passes, 0)
    assert (data.kind if isinstance(data, CachedDataset) else "none") == kind
    (line,) = messages(caplog)
    assert line.startswith(f"data.cache: auto is {kind}")


def test_auto_takes_what_is_on_the_disk_already(root: Path, caplog: Any) -> None:
    opened(root, "disk")
    caplog.clear()
    data = open_cached(Folder(options(root, cache="auto")), 66, 1, 0)
    assert isinstance(data, CachedDataset)
    assert data.kind == "disk"
    assert messages(caplog) == ["data.cache: auto is disk: all images are cached already"]


def test_without_the_option_and_for_other_data_there_is_no_cache(root: Path) -> None:
    data = Folder(options(root))
    assert open_cached(data, 66, 100, 0) is data
    with pytest.raises(ValidationError):
        Shapes.Options.parse({"cache": "disk"})
    assert FolderOptions.resume_rule("cache") == FolderOptions.resume_rule("cache_size") == "warn"
    assert FolderOptions.resume_rule("cache_dir") == "free"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a Linux machine with 8,000 kB to spare; the process is in a group within a group."""
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(room, "_MOUNT", tmp_path)
    (tmp_path / "group").write_text("4:memory:/other\n0::/batch/job_7\n")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\nHugePages_Free:  0\n")
    (tmp_path / "batch" / "job_7").mkdir(parents=True)
    return tmp_path


def limit(group: Path, most: str) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 7\n")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8000 * 1024),
        ({"": "max", "batch": "100000000"}, 8000 * 1024),
        ({"": "1000000"}, 600_000),
        ({"batch": "1000000", "batch/job_7": "max"}, 600_000),
        ({"batch": "1000000", "batch/job_7": "800000"}, 400_000),
        ({"batch": "100000"}, 0),
    ],
)
def test_memory_is_what_the_machine_and_its_control_groups_can_spare(
    machine: Path, limits: dict[str, str], expected: int
) -> None:
    for group, most in limits.items():
        limit(machine / group, most)
    assert available_memory() == expected


def test_memory_is_unknown_where_the_system_does_not_say(machine: Path) -> None:
    (machine / "group").unlink()
    assert available_memory() == 8000 * 1024
    (machine / "meminfo").unlink()
    assert available_memory() is None


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_known(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0


def test_a_disk_without_room_is_one_line_and_auto_goes_on_without_a_cache(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = Folder(options(root, cache="disk"))
    data = open_cached(folder, 66, 100, 0)
    assert isinstance(data, CachedDataset)
    why = rf"data\.cache: {data.path}: cannot be written \(File too large\); make room there or set data\.cache_dir"
    with full_disk(1000), pytest.raises(SslError, match=why):
        data.prepare()
    assert [file.suffix for file in data.path.parent.iterdir()] == [".lock"]
    monkeypatch.setattr(cached, "available_memory", lambda: 0)
    caplog.clear()
    auto = open_cached(Folder(options(root, cache="auto")), 66, 100, 0)
    assert isinstance(auto, CachedDataset)
    with full_disk(1000):
        auto.prepare()
    assert re.match(why, messages(caplog)[-1])
    assert messages(caplog)[-1].endswith("training goes on without a cache, to the same pixels")
    without = [auto.image_for(index, None) for index in range(len(auto))]
    data.prepare()
    assert all(torch.equal(image, data.image_for(index, None)) for index, image in enumerate(without))
