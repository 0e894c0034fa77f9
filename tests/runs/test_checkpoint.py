"""Checkpoints are written in the background, the newest are kept, the newest intact one is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from run_helpers import contents
from safetensors import SafetensorError

from sslcli.contracts.errors import SslError
from sslcli.runs import files
from sslcli.runs.checkpoint import CheckpointWriter, checkpoint_path, list_checkpoints, newest_intact, read_checkpoint


def save(directory: Path, steps: list[int], keep: int = 2) -> None:
    writer = CheckpointWriter(directory, keep)
    for step in steps:
        writer.save(step, {"x": torch.full((3,), float(step))}, {"step": step})
    writer.close()


def test_the_newest_are_kept_and_sorted_by_step(tmp_path):
    save(tmp_path, [9, 10, 100])
    (tmp_path / ".step-000000200.safetensors.abc.tmp").write_bytes(b"half")  # left by a killed process
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 100), checkpoint_path(tmp_path, 10)]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_newest_intact_one_is_read_and_each_damaged_one_is_named(tmp_path, messages):
    assert newest_intact(tmp_path / "missing", read_checkpoint) is None
    save(tmp_path, [1, 2, 3], keep=3)
    checkpoint_path(tmp_path, 3).write_bytes(b"")
    checkpoint_path(tmp_path, 2).write_bytes(checkpoint_path(tmp_path, 2).read_bytes()[:-1])
    found = newest_intact(tmp_path, read_checkpoint)
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.tensors["x"], torch.ones(3))
    named = [line.split(":")[1].strip() for line in messages]
    assert named == [str(checkpoint_path(tmp_path, step)) for step in (3, 2)]
    checkpoint_path(tmp_path, 1).write_bytes(b"")
    with pytest.raises(SslError, match="none of the 3 checkpoints is intact"):
        newest_intact(tmp_path, read_checkpoint)


def test_one_written_after_a_damaged_newer_one_is_kept_and_read(tmp_path, messages):
    save(tmp_path, [4, 8])
    checkpoint_path(tmp_path, 8).write_bytes(b"damaged")
    for keep in (1, 2):
        save(tmp_path, [6], keep=keep)
        assert newest_intact(tmp_path, read_checkpoint).step == 6
        assert [line for line in messages if "step-000000008" in line] == messages
    save(tmp_path, [8, 12], keep=1)  # overwritten when the run gets there
    messages.clear()
    assert [newest_intact(tmp_path, read_checkpoint).step, messages] == [12, []]


def test_another_format_version_is_refused(tmp_path):
    files.write(tmp_path / "f", {"x": torch.zeros(1)}, {"step": 1, "format_version": 99})
    with pytest.raises(files.DamagedFile, match="checkpoint format 99"):
        read_checkpoint(tmp_path / "f")


def test_a_checkpoint_that_cannot_be_written_is_reported_at_once_and_ends_a_run_only_if_it_is_the_last(
    tmp_path, monkeypatch, messages
):
    save(tmp_path, [1, 2], keep=2)
    before = contents(tmp_path)
    real, why = files.save_file, "No space left on device"
    full = SafetensorError(f"Error while serializing: I/O error: {why} (os error 28)")
    writer = CheckpointWriter(tmp_path, 2)
    writer.last_step = 2

    def write(tensors: object, path: Path, **kwargs: object) -> None:
        path.write_bytes(b"half")
        raise full

    monkeypatch.setattr(files, "save_file", write)
    writer.save(3, {"x": torch.zeros(1)}, {"step": 3})
    writer.join()
    path = checkpoint_path(tmp_path, 3)
    why = f"{path}: cannot be written ({why}); make room there"
    assert messages == [f"warning: {why}; training goes on, step 2 is saved"]
    assert contents(tmp_path) == before
    assert writer.last_step == 2  # so that the same step can be saved again
    with pytest.raises(SslError, match=re.escape(f"{why}; step 2 is saved: resume with --resume")):
        writer.check()
    monkeypatch.setattr(files, "save_file", real)
    writer.save(3, {"x": torch.ones(1)}, {"step": 3})
    writer.check()
    writer.close()
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (3, 2)]


def test_an_old_checkpoint_that_cannot_be_removed_is_no_failure_of_the_new_one(tmp_path, monkeypatch):
    save(tmp_path, [1, 2], keep=2)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: raised(PermissionError(13, "Permission denied")))
    writer = CheckpointWriter(tmp_path, 2)
    writer.save(3, {"x": torch.zeros(1)}, {"step": 3})
    writer.check()
    writer.close()
    assert len(list_checkpoints(tmp_path)) == 3


def test_the_first_checkpoint_that_fails_says_that_nothing_is_saved(tmp_path):
    writer = CheckpointWriter(tmp_path / "gone", 2)
    writer.save(1, {"x": torch.zeros(1)}, {"step": 1})
    with pytest.raises(SslError, match=r"written \(No such file or directory\); nothing is saved yet: resume"):
        writer.check()
    writer.close()


def raised(error: Exception) -> None:
    raise error
