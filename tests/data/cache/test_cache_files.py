"""The file of an image cache: when it is used, when it is made anew, and what a failure or a kill leaves of it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_helpers import BYTES, all_there, cache_files, messages, opened, unopened, write, write_pictures

from sslcli.contracts.errors import SslError, UserError
from sslcli.data.cache import file as cache_file
from sslcli.datasets.folder import Folder


@pytest.fixture
def root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO, "sslcli")
    write_pictures(tmp_path / "photographs")
    return tmp_path / "photographs"


def test_a_later_run_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    first = opened(root, "disk")
    expected = [first.image_for(index, None).clone() for index in range(10)]
    monkeypatch.setattr(Folder, "image_for", None)
    caplog.clear()
    second = opened(root, "disk")
    assert all(torch.equal(second.image_for(index, None), image) for index, image in enumerate(expected))
    assert messages(caplog) == [f"data.cache: 10 of 10 images from {second.path}"]


def test_the_size_is_reported_before_anything_is_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(Folder, "image_for", None)
    with pytest.raises(TypeError):
        opened(root, "disk")
    assert messages(caplog)[-1].startswith(
        "data.cache: decoding 10 images once, the shorter side at most 256 pixels: about 31.3"
    )
    monkeypatch.undo()
    data = opened(root, "disk")
    assert data.path.stat().st_size == BYTES + 10 * 16 + 2 * 32  # shapes, fingerprint, sha256


def change(root: Path) -> None:
    write(root / "class0" / "2.jpg", 31, 25, 77)


def touch(root: Path) -> None:
    os.utime(root / "class0" / "2.jpg", ns=(1, 1))


def swap(root: Path) -> None:
    """Two files of the same size trade their names."""
    first, second = root / "class0" / "2.jpg", root / "class0" / "4.jpg"
    for file in (first, second):
        file.write_bytes(file.read_bytes().ljust(3000, b"\0"))
    opened(root, "disk")
    first.rename(root / "moved")
    second.rename(first)
    (root / "moved").rename(second)


@pytest.mark.parametrize("change", [change, touch, swap, lambda root: (root / "class0" / "2.jpg").unlink()])
def test_a_change_of_a_file_makes_the_cache_anew(root: Path, change: Any, caplog: Any) -> None:
    first = opened(root, "disk")
    expected = [first.image_for(index, None).clone() for index in range(10)]
    change(root)
    caplog.clear()
    data = opened(root, "disk")
    assert [("removed" in line, "decoding" in line) for line in messages(caplog)][:2] == [(True, False), (False, True)]
    assert cache_files(root) == [data.path, data.path.with_suffix(".lock")]
    assert all_there(data)
    if change is not swap:  # which has opened another one meanwhile
        assert all(torch.equal(first.image_for(index, None), image) for index, image in enumerate(expected))


def test_each_choice_of_images_and_each_bound_has_a_file(root: Path, caplog: Any) -> None:
    choices: list[dict[str, object]] = [{}, {"channels": 1}, {"cache_size": 16}, {"limit": 4}]
    for changes in choices:
        opened(root, "disk", **changes)
    caplog.clear()
    for changes in choices:
        opened(root, "disk", **changes)
    assert not any("decoding" in line for line in messages(caplog))
    assert sum(file.suffix == ".cache" for file in cache_files(root)) == 4


@pytest.mark.parametrize("damage", ["index", "cut", "cut short", "empty", "longer"])
def test_a_damaged_file_is_noticed_and_made_anew(root: Path, damage: str, caplog: Any) -> None:
    path = opened(root, "disk").path
    content = path.read_bytes()
    flipped = content[: BYTES + 5] + bytes([content[BYTES + 5] ^ 1]) + content[BYTES + 6 :]
    damaged = {
        "index": flipped,
        "cut": content[:-1],
        "cut short": content[:20],
        "empty": b"",
        "longer": content + b"\0",
    }
    path.write_bytes(damaged[damage])
    caplog.clear()
    assert all_there(opened(root, "disk"))
    assert sum(": incomplete, damaged" in line for line in messages(caplog)) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_in_the_place_of_one_is_replaced(root: Path, make: Any, caplog: Any) -> None:
    path = unopened(root, "disk").path
    path.parent.mkdir()
    make(path)
    assert all_there(opened(root, "disk"))
    assert sum(": incomplete, damaged" in line for line in messages(caplog)) == 1


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("where", "failure", "message"),
    [
        ("sslcli.datasets.folder.Folder.image_for", interrupt, None),
        ("os.fsync", interrupt, None),
        ("os.fsync", fail, r"^data\.cache: /\S*\.cache: Input/output error$"),
        ("sslcli.data.cache.file.loader", fail, r"^data\.cache: /\S*\.cache: Input/output error$"),
        ("sslcli.data.cache.file._sealed", interrupt, None),
        ("sslcli.data.cache.dataset.fcntl.flock", fail, r"^data\.cache_dir: cannot use [^\n]*Input/output error"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    root: Path, where: str, failure: Any, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, failure)
    with pytest.raises(SslError if message else KeyboardInterrupt, match=message):
        opened(root, "disk")
    monkeypatch.undo()
    assert [file.suffix for file in cache_files(root)] == [".lock"]
    assert all_there(opened(root, "disk"))


def test_a_file_has_its_name_only_when_it_is_complete_and_synced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []

    def noted(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            synced.append((os.stat(handle).st_size, data.path.exists()))

    data = unopened(root, "disk")
    monkeypatch.setattr(os, "fsync", noted)
    data.prepare()
    assert synced == [(BYTES + 10 * 16 + 2 * 32, False)]


def test_a_file_that_cannot_be_opened_is_reported_and_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(root, "disk")
    before = data.path.read_bytes()
    again = unopened(root, "disk")

    def refused(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(data.path))

    monkeypatch.setattr("sslcli.data.cache.dataset.CachedImages", refused)
    with pytest.raises(UserError, match=r"^data\.cache_dir: cannot use [^\n]*Permission denied"):
        again.prepare()
    assert data.path.read_bytes() == before


def test_what_a_killed_process_left_is_removed(root: Path) -> None:
    odd = root.rename(root.parent / "photographs [1] *?")
    data = unopened(odd, "disk")
    data.path.parent.mkdir()
    (data.path.parent / f".{data.path.name}.abc.tmp").write_bytes(b"half of it")
    (data.path.parent / ".other.cache.abc.tmp").touch()
    data.prepare()
    assert set(cache_files(odd)) == {
        data.path.parent / ".other.cache.abc.tmp",
        data.path,
        data.path.with_suffix(".lock"),
    }


def test_a_worker_that_is_killed_ends_the_build_with_a_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "_CHUNK", 2)
    monkeypatch.setattr(Folder, "image_for", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SslError, match=r"^a worker process died[^\n]*data\.cache=disk[^\n]*$"):
        opened(root, "disk", workers=2)


def test_a_folder_that_cannot_be_used_is_refused(root: Path) -> None:
    (root.parent / "cache").write_text("")
    with pytest.raises(UserError, match=r"^data\.cache_dir: cannot use [^\n]*; set it to another folder$"):
        opened(root, "disk")


def start(root: Path) -> subprocess.Popen[str]:
    """Another process that makes a cache of many photographs."""
    script = """
import logging, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cache_helpers import opened
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
opened(Path(sys.argv[1]), "disk", workers=2)
"""
    command = [sys.executable, "-c", script, str(root), str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def many(root: Path) -> Path:
    for number in range(600):
        write(root / "class0" / f"large{number}.jpg", 500, 375, number)
    return root


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_lasts(many: Path) -> None:
    process, folder = start(many), many.parent / "cache"
    while not any(file.stat().st_size for file in folder.glob(".*.tmp")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    data = opened(many, "disk", workers=1)
    assert cache_files(many) == [data.path, data.path.with_suffix(".lock")]
    for index in range(0, 600, 7):
        assert torch.equal(data.image_for(index, None), data._decode(index))


@pytest.mark.slow
def test_two_processes_that_build_at_once_make_one_cache(many: Path) -> None:
    processes = [start(many) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("decoding" in text for text in texts) == [False, True]
