"""Pictures, and caches of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslcli.contracts.views import ViewSpec
from sslcli.data.cache.dataset import CachedDataset, Kind
from sslcli.data.crops import wanted_side
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.views.pipeline import ViewMaker

#: Of the ten pictures of `write_pictures`, as pixels.
BYTES = 3 * (sum((30 + 3 * number) * (23 + number) for number in range(8)) + 33 * 21 + 40 * 26)
KINDS: tuple[Kind, ...] = ("memory", "disk")


def write(path: Path, width: int, height: int, seed: int, **named: object) -> None:
    """A smooth picture, so that a JPEG of it is nearly the same at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **named)


def write_pictures(folder: Path) -> None:
    """Ten pictures of different sizes and formats, the shorter side 30 pixels at most."""
    for number in range(8):
        write(folder / f"class{number % 2}" / f"{number}.jpg", 30 + 3 * number, 23 + number, number, quality=95)
    write(folder / "class0" / "gray.png", 33, 21, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    write(folder / "class1" / "turned.jpg", 40, 26, 9, exif=turned)


def options(root: Path, **changes: object) -> FolderOptions:
    return FolderOptions.parse({"root": str(root), "cache_dir": str(root.parent / "cache"), **changes})


def views(size: int = 16) -> ViewMaker:
    operations = [{"name": "crop", "options": {}}, {"name": "flip", "options": {}}]
    spec = ViewSpec.parse({"count": 2, "size": size, "operations": operations})
    return ViewMaker([spec], 3, (0.5,) * 3, (0.25,) * 3, 0)


def unopened(root: Path, kind: Kind, size: int = 16, workers: int = 0, **changes: object) -> CachedDataset:
    return CachedDataset(Folder(options(root, **changes)), wanted_side(views(size)), kind, workers)


def opened(root: Path, kind: Kind, size: int = 16, workers: int = 0, **changes: object) -> CachedDataset:
    """A cache that is ready."""
    data = unopened(root, kind, size, workers, **changes)
    data.prepare()
    return data


def all_there(data: CachedDataset) -> bool:
    """Whether all images are there, and are those of the files."""
    assert data._images is not None
    found = [data._images[index] for index in range(len(data))]
    return all(one is not None and torch.equal(one, data.dataset.image(index)) for index, one in enumerate(found))


def cache_files(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").iterdir())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("sslcli.")]
