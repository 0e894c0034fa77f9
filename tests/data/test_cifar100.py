from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from sslcli.contracts.errors import UserError
from sslcli.data.cifar import CIFAR100, MEAN_100, STD_100, CIFAR10Options

NAMES = [f"class{n:02d}" for n in range(100)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100 in the original's files, with 200 and 100 images."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    draw = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for name, count, attribute in (("train", 200, "train_list"), ("test", 100, "test_list")):
        pixels = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = {"fine_labels": [n % 100 for n in range(count)], "coarse_labels": [n % 20 for n in range(count)]}
        monkeypatch.setattr(datasets.CIFAR100, attribute, [[name, write(name, {"data": pixels, **labels})]])
    digest = write("meta", {"fine_label_names": NAMES, "coarse_label_names": NAMES[:20]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": digest})
    return tmp_path


def test_images_and_fine_labels_are_those_of_the_files(tiny: Path) -> None:
    data = CIFAR100(CIFAR10Options(root=tiny))
    batch = pickle.loads((tiny / "cifar-100-python" / "train").read_bytes())
    assert torch.equal(data.images().flatten(1), torch.from_numpy(batch["data"]))
    assert data.labels.tolist() == batch["fine_labels"]
    assert data.info.name == "cifar100"
    assert data.info.classes == tuple(NAMES)
    assert (data.info.mean, data.info.std) == (MEAN_100, STD_100)
    assert len(CIFAR100(CIFAR10Options(root=tiny, split="test"))) == 100


def test_missing_data_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.root: no CIFAR-100 in [^\n]*cifar-100-python[^\n]*$"):
        CIFAR100(CIFAR10Options(root=tmp_path))
