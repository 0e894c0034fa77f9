"""Files that grow whatever the disk does, and what an error of the disk names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from run_helpers import full_disk

from sslcli.contracts.errors import UserError
from sslcli.storage import Appending, atomic_path, write_text, writing


def test_records_wait_for_room_and_none_is_lost_or_torn(tmp_path: Path, messages: list[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"zero\n")
    file = Appending(path, "training goes on")
    file.write(b"one\n")
    with full_disk(12):
        file.write(b"twotwotwo\n")
        assert path.read_bytes() == b"zero\none\ntwo"  # which the system took
        file.write(b"three\n")
    assert messages == [
        f"warning: {path}: cannot be written (File too large); make room there; training goes on, and what is missing "
        "is added later"
    ]
    file.write(b"four\n")
    assert messages[1:] == [f"{path}: is written again; nothing is missing"]
    assert path.read_bytes() == b"zero\none\ntwotwotwo\nthree\nfour\n"
    with full_disk(30):
        file.write(b"five\n")
        file.close()
    assert path.read_bytes() == b"zero\none\ntwotwotwo\nthree\nfour\n"  # not half a record
    assert messages[-1] == f"warning: {path}: 1 of its records could not be written and are lost"


def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "folder").touch()
    file = Appending(tmp_path / "folder" / "log", "training goes on")
    file.write(b"one\n")
    assert "cannot be written (File exists)" in messages[0]
    (tmp_path / "folder").unlink()
    file.write(b"two\n")
    file.close()
    assert (tmp_path / "folder" / "log").read_bytes() == b"one\ntwo\n"


def test_an_error_names_the_file_and_what_was_there_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    write_text(path, "before")
    with full_disk(3), pytest.raises(OSError, match="File too large") as raised:
        write_text(path, "much more")
    assert raised.value.filename == str(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["config"])
    gone, match = tmp_path / "gone" / "x", r"gone/x: cannot be written \(No such file or directory\); choose another$"
    with pytest.raises(UserError, match=match), writing(gone, "; choose another"):
        write_text(gone, "")
    for number, advice in ((errno.ENOSPC, "; make room there or choose another"), (errno.EROFS, "; choose another")):
        with pytest.raises(UserError, match=rf"\){advice}$"), writing(path, "; choose another"):
            raise OSError(number, os.strerror(number))

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)  # the first error is what is raised
    with pytest.raises(OSError, match="Input/output error"), atomic_path(path):
        raise OSError(errno.EIO, "Input/output error")
