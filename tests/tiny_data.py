"""Datasets of a few images in their original files' formats, for tests that open every dataset there is."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import cifar, stl10

CLASSES = [f"class {number}" for number in range(10)]


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        images = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": [n % 10 for n in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    names = [f"class {number:02d}" for number in range(100)]
    for name in ("train", "test"):
        images = draw.integers(0, 256, (200, 3072), dtype=np.uint8)
        content = {"data": images, "fine_labels": [n % 100 for n in range(200)], "coarse_labels": [0] * 200}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"fine_label_names": names, "coarse_label_names": ["all"]}
    (folder / "meta").write_bytes(pickle.dumps(meta))


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split in ("train", "test", "unlabeled"):
        draw.integers(0, 256, (20, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(20, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "fold_indices.txt").write_text("\n".join([" ".join(str(n) for n in range(10))] * 10) + "\n")


def write_folders(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = draw.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def write_imagenet(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for synset in ("n01440764", "n02012849", "n03126707"):
            (root / split / synset).mkdir(parents=True)
            for number in range(4):
                pixels = draw.integers(0, 256, (20, 24 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / synset / f"{synset}_{number}.JPEG")


def write_tars(root: Path, sizes: tuple[int, ...] = (9, 7, 8, 8), *, labels: bool = True) -> None:
    """A tar file for each size, with a `.png` of as many images, and a `.cls` of each unless `labels` is false."""
    draw = np.random.default_rng(0)
    root.mkdir()
    for shard, size in enumerate(sizes):
        with tarfile.open(root / f"part-{shard:03}.tar", "w") as tar:
            for number in range(size):
                file, pixels = io.BytesIO(), draw.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
                contents = {"png": file.getvalue(), "cls": str(number % 2).encode()}
                for ending in contents if labels else ["png"]:
                    member = tarfile.TarInfo(f"{shard}-{number}.{ending}")
                    member.size = len(contents[ending])
                    tar.addfile(member, io.BytesIO(contents[ending]))


#: By the dataset's name: what writes a small one into a folder.
WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
    "folder": write_folders,
    "images": write_folders,
    "imagenet": write_imagenet,
}


@pytest.fixture
def tiny_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the writers, with torchvision's checksums switched off."""
    for module in (cifar, stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    return tmp_path / "data"
