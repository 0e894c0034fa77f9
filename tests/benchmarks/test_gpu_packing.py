"""What travels to a lent GPU and back comes out byte for byte, and a run in pieces is the run in one."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture
from run_helpers import assert_same_end, contents, method_config
from safetensors.torch import save_file

from sslcli.training.train import train

# ruff: noqa: F811


@pytest.fixture
def packing(benchmark: Import) -> Any:
    return benchmark("gpu.packing")


@pytest.mark.parametrize("count", [1, 7, 230, 1001])
def test_images_come_out_byte_for_byte(packing: Any, count: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    raw = pickle.dumps({b"batch_label": b"one", b"data": pixels, b"labels": list(range(count))})
    packed = packing.pack_images(raw)
    assert packing.unpack_images(packed) == raw
    # The digest of another file must not pass.
    other = packing.pack_images(pickle.dumps({b"batch_label": b"two", b"data": pixels, b"labels": list(range(count))}))
    with pytest.raises(packing.Damaged):
        packing.unpack_images(_with(packed, other, "about.json"))


def _with(packed: bytes, other: bytes, entry: str) -> bytes:
    """A zip file with one entry from another one."""
    result = io.BytesIO()
    mine, theirs = (zipfile.ZipFile(io.BytesIO(each)) for each in (packed, other))
    with zipfile.ZipFile(result, "w") as file:
        for name in mine.namelist():
            file.writestr(name, (theirs if name == entry else mine).read(name))
    return result.getvalue()


def test_pixels_in_several_strings_are_refused(packing: Any) -> None:
    half = np.zeros((2, 3072), np.uint8)
    with pytest.raises(ValueError, match="one string"):
        packing.pack_images(pickle.dumps({b"data": [half[0].tolist(), half[1].tolist()]}))


@pytest.mark.slow
def test_cifar10_becomes_half_as_large(packing: Any) -> None:
    path = Path(os.environ.get("SSLCLI_TEST_DATA", "")) / "cifar10/cifar-10-batches-py/data_batch_1"
    if not path.is_file():
        pytest.skip("needs CIFAR-10: set SSLCLI_TEST_DATA")
    raw = path.read_bytes()
    packed = packing.pack_images(raw)
    assert packing.unpack_images(packed) == raw
    assert len(packed) < 0.56 * len(raw)


def test_every_word_survives_its_planes(packing: Any) -> None:
    draw = np.random.default_rng(0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3.4e38, 1.5], "<f4").tobytes()
    for extra in range(9):
        raw = special + draw.bytes(4 * 1000 + extra)
        assert packing._joined(packing._planes(raw)) == raw
    assert packing._joined(packing._planes(b"")) == b""


def a_run(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 3\n")
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    for step in (5, 10):
        save_file({**tensors, "step": torch.tensor(step)}, folder / f"checkpoints/step-{step:09}.safetensors")
    return folder


def test_a_run_comes_out_byte_for_byte_with_its_last_checkpoint(packing: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = a_run(tmp_path / "run", {"weight": 0.02 * torch.randn(100_000), "zeros": torch.zeros(10_000)})
    assert packing.newest_checkpoint(run) == (run / "checkpoints/step-000000010.safetensors", 10)
    pieces = packing.pack_run(run)
    packing.unpack_run(pieces, tmp_path / "there")
    (run / "checkpoints/step-000000005.safetensors").unlink()
    expected = {path.relative_to(run): data for path, data in contents(run).items()}
    assert {
        path.relative_to(tmp_path / "there"): data for path, data in contents(tmp_path / "there").items()
    } == expected
    whole = (run / "checkpoints/step-000000010.safetensors").stat().st_size
    assert sum(map(len, pieces)) < 0.85 * whole


def test_half_a_run_is_refused_and_nothing_is_written(
    packing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PIECE", 1000)
    pieces = packing.pack_run(a_run(tmp_path / "run", {"weight": torch.randn(1000)}))
    assert max(map(len, pieces)) <= 1000
    assert len(pieces) > 3
    for missing in range(len(pieces)):
        with pytest.raises(packing.Damaged):
            packing.unpack_run(pieces[:missing] + pieces[missing + 1 :], tmp_path / "there")
        assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_run_in_packed_pieces_is_the_run_in_one(packing: Any, tmp_path: Path, method: str) -> None:
    def config(*more: str) -> Any:
        return method_config(method, *more)

    train(config("training.max_steps=6"), tmp_path / "whole")
    folder = tmp_path / "first"
    train(config("training.max_steps=2"), folder)
    for number, until in enumerate((5, 6)):
        following = tmp_path / f"piece-{number}"
        packing.unpack_run(packing.pack_run(folder), following)
        folder = following
        train(config(f"training.max_steps={until}"), folder, resume=True)
    assert_same_end(tmp_path / "whole", folder)


def test_what_a_wheel_needs_is_read_without_extras(benchmark: Import, tmp_path: Path) -> None:
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    listed = ["two==2.41", 'three>=1; python_version < "3.9"', 'four; extra == "email"', "Five_X>=0.4"]
    with zipfile.ZipFile(wheel, "w") as file:
        lines = ["Metadata-Version: 2.1", "Name: one", *(f"Requires-Dist: {each}" for each in listed), "", ""]
        file.writestr("one-1.0.dist-info/METADATA", "\n".join(lines))
    found = benchmark("gpu.prepare").requirements(wheel)
    assert [(each.name, str(each.specifier)) for each in found] == [("two", "==2.41"), ("Five_X", ">=0.4")]
