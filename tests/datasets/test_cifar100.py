from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision import datasets

from sslcli.contracts.errors import UserError
from sslcli.datasets.cifar import CIFAR100, MEAN_100, STD_100, CIFAR10Options

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


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_data_with_a_wrong_checksum_are_refused(tiny: Path, name: str) -> None:
    file = tiny / "cifar-100-python" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"^data\.root: damaged or incomplete CIFAR-100[^\n]*$"):
        CIFAR100(CIFAR10Options(root=tiny))


def test_missing_file_is_fetched_on_request(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny / "cifar-100-python" / "test"
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(datasets.CIFAR100, "download", lambda self: file.write_bytes(content))
    with pytest.raises(UserError, match=r"data\.download=true"):
        CIFAR100(CIFAR10Options(root=tiny, split="test"))
    assert not file.exists()
    assert len(CIFAR100(CIFAR10Options(root=tiny, split="test", download=True))) == 100
    assert file.exists()


def test_fetched_data_with_a_wrong_checksum_are_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny / "cifar-100-python" / "train"
    file.unlink()
    monkeypatch.setattr(datasets.CIFAR100, "download", lambda self: file.write_bytes(b"an error page"))
    with pytest.raises(UserError, match=r"^data\.download: CIFAR-100 could not be fetched into [^\n]*$"):
        CIFAR100(CIFAR10Options(root=tiny, download=True))


def test_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        CIFAR10Options.parse({"split": "val"})
