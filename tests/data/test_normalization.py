from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UserError
from sslcli.data import normalization
from sslcli.data.normalization import measure
from sslcli.data.paths import user_cache
from sslcli.datasets.folder import Folder, FolderOptions


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sslcli"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(6):
        pixels = draw.integers(0, 40 * number + 20, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "a" / f"{number}.png")
    return tmp_path / "photos"


def options(root: Path) -> FolderOptions:
    return FolderOptions(root=root, normalization="measured")


def test_measured_values_are_those_of_the_images(photos: Path) -> None:
    data = Folder(options(photos))
    mean, std = channel_statistics(torch.stack([data.image(index) for index in range(6)]))
    assert data.info.mean == pytest.approx(mean, abs=1e-5)
    assert data.info.std == pytest.approx(std, abs=1e-5)


def test_each_image_has_the_same_weight_whatever_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (0, 0, 0)).save(tmp_path / "1.png")
    Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / "2.png")
    mean, std = measure(tmp_path, ["1.png", "2.png"], 3)
    assert mean == pytest.approx([0.5] * 3)
    assert std == pytest.approx([0.5] * 3)


def test_values_are_cached_until_an_image_changes(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Folder(options(photos)).info
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["mean"] == list(first.mean)
    with monkeypatch.context() as patch:
        patch.setattr(normalization, "decode", lambda *arguments: pytest.fail("measured again"))
        assert Folder(options(photos)).info == first
    Image.new("RGB", (9, 9), (255, 255, 255)).save(photos / "a" / "0.png")
    assert Folder(options(photos)).info.mean > first.mean


@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"mean": ', b"[]", b"null", b"7", b"\xff\xfe", b"[" * 10_000,
        b'{"mean": [0.5], "std": [0.2]}', b'{"mean": "abc", "std": "abc"}', b'{"mean": 1, "std": 1}',
        b'{"mean": [0.5, 0.5, NaN], "std": [0.2, 0.2, 0.2]}', b'{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0]}',
        b'{"mean": [120.0, 110.0, 100.0], "std": [60.0, 60.0, 60.0]}', b'{"mean": [0.5, 0.5, 0.5]}',
    ],
)  # fmt: skip
def test_values_are_measured_again_if_the_cache_is_damaged(photos: Path, cache: Path, content: bytes) -> None:
    first = Folder(options(photos)).info
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert Folder(options(photos)).info == first
    assert json.loads(file.read_text())["std"] == list(first.std)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to(file)])
def test_what_is_no_file_in_the_place_of_one_only_costs_time(photos: Path, cache: Path, make: Any) -> None:
    first = Folder(options(photos)).info
    (file,) = cache.iterdir()
    file.unlink()
    make(file)
    assert Folder(options(photos)).info == first


def test_a_user_without_a_home_directory_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert user_cache().parent.parent == Path(tempfile.gettempdir())


def test_an_unwritable_cache_only_costs_time(photos: Path, cache: Path) -> None:
    expected = Folder(options(photos)).info
    for file in cache.iterdir():
        file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert Folder(options(photos)).info == expected


def test_unreadable_images_are_left_out_and_if_all_are_that_is_reported(photos: Path) -> None:
    expected = measure(photos / "a", ["1.png", "2.png"], 3)
    (photos / "a" / "bad.png").write_bytes(b"nothing")
    assert measure(photos / "a", ["1.png", "2.png", "bad.png"], 3) == expected
    with pytest.raises(UserError, match=r"^data\.normalization: none of the 1 images[^\n]*$"):
        measure(photos / "a", ["bad.png"], 3)
