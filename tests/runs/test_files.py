"""A file of ours is whole or not there, and tells when a byte has changed."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
import torch

from sslcli.runs import files
from sslcli.storage import atomic_path

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


def write(path: Path) -> None:
    files.write(path, TENSORS, {"step": 500, "numbers": {"x": 0.1, "none": None}})


def test_tensors_and_document_come_back_as_they_were(tmp_path):
    write(tmp_path / "f")
    tensors, document = files.read(tmp_path / "f")
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert document == {"step": 500, "numbers": {"x": 0.1, "none": None}}


def test_a_prefix_reads_only_what_begins_with_it(tmp_path):
    write(tmp_path / "f")
    assert list(files.read(tmp_path / "f", "a.")[0]) == ["a.weight"]


def test_a_flipped_bit_in_any_byte_is_found(tmp_path):
    """The header too: one flipped bit there once turned step 500 into 400, and the file loaded cleanly."""
    write(tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    passed = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (tmp_path / "g").write_bytes(damaged)
        with contextlib.suppress(files.DamagedFile):
            tensors, document = files.read(tmp_path / "g")
            # What passes is a change that says the same, in a key of the header that is for others than us.
            assert document["step"] == 500
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()), place
            passed += 1
    assert passed < 20


def test_a_file_that_was_cut_short_is_damaged(tmp_path):
    write(tmp_path / "f")
    for length in (0, 4, 100, (tmp_path / "f").stat().st_size - 1):
        (tmp_path / "g").write_bytes((tmp_path / "f").read_bytes()[:length])
        with pytest.raises(files.DamagedFile, match="damaged"):
            files.read(tmp_path / "g")


def test_the_damaged_tensor_is_named(tmp_path):
    write(tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    place = whole.index(TENSORS["a.weight"].numpy().tobytes())
    (tmp_path / "f").write_bytes(whole[:place] + b"\1" + whole[place + 1 :])
    with pytest.raises(files.DamagedFile, match=r"the tensor a\.weight is not what was written"):
        files.read(tmp_path / "f")


def test_files_of_others_are_told_from_ours(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "theirs")
    (tmp_path / "text").write_text("hello")
    for name in ("theirs", "text"):
        with pytest.raises(files.DamagedFile):
            files.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "nothing")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write(tmp_path / "f")
    before = (tmp_path / "f").read_bytes()

    def write_half() -> None:
        with atomic_path(tmp_path / "f") as temporary:
            temporary.write_text("half of it")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert (tmp_path / "f").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_files_get_the_mode_that_the_umask_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "f")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_snapshot_is_contiguous_and_belongs_to_nobody_else():
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copy = files.snapshot({"weight": weight})["weight"]
    assert copy.is_contiguous()
    before = copy.clone()
    weight.add_(1)
    assert torch.equal(copy, before)


def test_a_snapshot_refuses_memory_under_two_names():
    weight = torch.randn(4)
    with pytest.raises(ValueError, match="a and b share memory"):
        files.snapshot({"a": weight, "b": weight[1:]})
