from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision import datasets

from sslcli.contracts.errors import UserError
from sslcli.datasets.stl10 import CLASSES, STL10, STL10Options

COUNTS = {"train_X.bin": 20, "test_X.bin": 10, "unlabeled_X.bin": 6}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """STL-10 in the original's files: planes of columns, labels from 1 to 10, a line of indices for each fold."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    draw = np.random.default_rng(0)
    digests = {}
    for name, count in COUNTS.items():
        files = {name: draw.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes()}
        if name != "unlabeled_X.bin":
            files[name.replace("X", "y")] = bytes(n % 10 + 1 for n in range(count))
        for file, content in files.items():
            (folder / file).write_bytes(content)
            digests[file] = hashlib.md5(content).hexdigest()
    (folder / "fold_indices.txt").write_text("\n".join(f"{fold} {fold + 10} " for fold in range(10)) + "\n")
    (folder / "class_names.txt").write_text("\n".join(CLASSES) + "\n")
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, [[name, digests[name]] for name in names])
    return tmp_path


def pixels(root: Path, name: str, index: int) -> torch.Tensor:
    content = np.fromfile(root / "stl10_binary" / name, dtype=np.uint8).reshape(-1, 3, 96, 96)
    return torch.from_numpy(content[index]).transpose(1, 2)  # the file's planes run down the columns


def test_images_are_upright_and_labels_count_from_zero(tiny: Path) -> None:
    data = STL10(STL10Options(root=tiny, split="train"))
    assert len(data) == 20
    assert torch.equal(data.image(13), pixels(tiny, "train_X.bin", 13))
    assert torch.equal(data.images()[13], data.image(13))
    assert data.images().is_contiguous()
    assert data.labels is not None
    assert data.labels.tolist() == [n % 10 for n in range(20)]
    assert data.labels.dtype == torch.int64
    assert (data.info.image_size, data.info.classes, data.info.channels) == ((96, 96), CLASSES, 3)
    assert STL10.view_size(data.options) == 96


def test_splits_are_those_of_the_files_and_the_unlabeled_ones_have_no_labels(tiny: Path) -> None:
    test = STL10(STL10Options(root=tiny, split="test"))
    assert (len(test), test.labels is None) == (10, False)
    unlabeled = STL10(STL10Options(root=tiny, split="unlabeled"))
    assert (len(unlabeled), unlabeled.labels, unlabeled.info.classes) == (6, None, None)
    assert torch.equal(unlabeled.image(2), pixels(tiny, "unlabeled_X.bin", 2))
    both = STL10(STL10Options(root=tiny))
    assert (len(both), both.labels) == (26, None)
    assert torch.equal(both.image(19), pixels(tiny, "train_X.bin", 19))
    assert torch.equal(both.image(20), pixels(tiny, "unlabeled_X.bin", 0))


def test_fold_takes_its_own_training_images(tiny: Path) -> None:
    data = STL10(STL10Options(root=tiny, split="train", folds=3))
    assert len(data) == 2
    assert torch.equal(data.image(1), pixels(tiny, "train_X.bin", 13))
    assert data.labels is not None
    assert data.labels.tolist() == [3, 3]
    assert len(STL10(STL10Options(root=tiny, split="train+unlabeled", folds=0))) == 8


@pytest.mark.parametrize("wrong", [{"folds": 10}, {"split": "test", "folds": 1}, {"split": "unlabeled", "folds": 1}])
def test_folds_that_do_not_exist_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        STL10Options.parse(wrong)


def test_limit_takes_the_same_share_of_each_class(tiny: Path) -> None:
    data = STL10(STL10Options(root=tiny, split="train", limit=10))
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [1] * 10
    assert len(STL10(STL10Options(root=tiny, limit=5))) == 5


def test_probe_is_fitted_on_train_and_judged_on_test_whatever_was_trained_on(tiny: Path) -> None:
    options = STL10Options(root=tiny, split="train+unlabeled", limit=5, folds=1)
    assert STL10.labeled(options, "train") == STL10Options(root=tiny, split="train")
    assert STL10.labeled(options, "eval") == STL10Options(root=tiny, split="test")
    train = STL10Options(root=tiny, split="train", limit=5, folds=1)
    assert STL10.labeled(train, "train") == train
    assert STL10.labeled(train, "eval") == STL10Options(root=tiny, split="test")


def test_missing_and_damaged_files_are_told(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.root: no STL-10 in [^\n]*data\.download=true[^\n]*$"):
        STL10(STL10Options(root=tmp_path / "nowhere"))
    file = tiny / "stl10_binary" / "train_X.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"^data\.root: damaged or incomplete STL-10[^\n]*$"):
        STL10(STL10Options(root=tiny))


@pytest.mark.parametrize("name", ["unlabeled_X.bin", "test_y.bin"])
def test_file_that_is_missing_is_told(tiny: Path, name: str) -> None:
    (tiny / "stl10_binary" / name).unlink()
    with pytest.raises(UserError, match=r"^data\.root: damaged or incomplete STL-10[^\n]*$"):
        STL10(STL10Options(root=tiny))


def test_file_with_a_wrong_checksum_is_told(tiny: Path) -> None:
    file = tiny / "stl10_binary" / "unlabeled_X.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"^data\.root: damaged or incomplete STL-10[^\n]*$"):
        STL10(STL10Options(root=tiny, split="unlabeled"))


def test_missing_file_is_fetched_on_request(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny / "stl10_binary" / "unlabeled_X.bin"
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(datasets.STL10, "download", lambda self: file.write_bytes(content))
    assert len(STL10(STL10Options(root=tiny, download=True))) == 26


def test_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets.STL10, "download", no_network)
    with pytest.raises(UserError, match=r"^data\.download: STL-10 could not be fetched into [^\n]*no route[^\n]*$"):
        STL10(STL10Options(root=tmp_path, download=True))


def test_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        STL10Options.parse({"split": "val"})
