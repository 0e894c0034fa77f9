"""Safetensors files are written whole or not at all, and a changed byte is detected."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sslcli.runs import files
from sslcli.storage import atomic_path

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    files.write(tmp_path / "f", TENSORS, {"step": 500, "numbers": {"x": 0.1, "none": None}})
    return tmp_path / "f"


def test_tensors_and_document_are_read_as_they_were_written(file):
    tensors, document = files.read(file)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert document == {"step": 500, "numbers": {"x": 0.1, "none": None}}
    assert list(files.read(file, "a.")[0]) == ["a.weight"]


def test_a_flipped_bit_in_any_byte_is_detected(file, tmp_path):
    """In the header too: one flipped bit there once turned step 500 into 400, and the file loaded without an error."""
    whole = file.read_bytes()
    passed = 0
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 4
        (tmp_path / "g").write_bytes(damaged)
        with contextlib.suppress(files.DamagedFile):
            tensors, document = files.read(tmp_path / "g")
            # Only changes of header entries that are for other programs are not detected.
            assert document["step"] == 500
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()), index
            passed += 1
    assert passed < 20


def test_the_damaged_tensor_is_named(file):
    whole = file.read_bytes()
    index = whole.index(TENSORS["a.weight"].numpy().tobytes())
    file.write_bytes(whole[:index] + b"\1" + whole[index + 1 :])
    with pytest.raises(files.DamagedFile, match=r"the tensor a\.weight is not what was written"):
        files.read(file)


def test_other_and_truncated_files_are_refused(file, tmp_path):
    whole = file.read_bytes()
    save_file({"x": torch.zeros(2)}, tmp_path / "g")
    for content in ((tmp_path / "g").read_bytes(), b"hello", *(whole[:n] for n in (0, 4, 100, len(whole) - 1))):
        (tmp_path / "g").write_bytes(content)
        with pytest.raises(files.DamagedFile):
            files.read(tmp_path / "g")
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "nothing")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(file):
    before = file.read_bytes()

    def write_half() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half of it")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_files_get_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "f", {}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_snapshot_is_a_contiguous_copy_and_rejects_shared_memory():
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copy = files.snapshot({"weight": weight})["weight"]
    assert copy.is_contiguous()
    before = copy.clone()
    weight.add_(1)
    assert torch.equal(copy, before)
    weight = torch.randn(4)
    with pytest.raises(ValueError, match="a and b share memory"):
        files.snapshot({"a": weight, "b": weight[1:]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_snapshot_from_a_gpu_is_what_was_there_though_work_was_pending_and_follows():
    tensors = {str(n): torch.randn(64, 32, 3, 3, device="cuda") for n in range(20)}
    tensors = {name: tensor.to(memory_format=torch.channels_last) for name, tensor in tensors.items()}
    tensors |= {"number": torch.full((), 3, device="cuda"), "empty": torch.empty(0, device="cuda")}
    factor = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):  # keeps the device busy
        factor = factor @ factor / 4096
    for tensor in tensors.values():
        tensor.add_(1)
    expected = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    found = files.snapshot(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    for name, copy in found.items():
        assert copy.is_contiguous()
        assert copy.is_pinned() or not copy.numel()
        assert torch.equal(copy, expected[name].cpu()), name
