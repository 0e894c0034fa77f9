"""CIFAR-10, CIFAR-100 and STL-10: what is read from the original files, and reported when they are missing."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision import datasets

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UserError
from sslcli.data.subset import limited
from sslcli.datasets import stl10
from sslcli.datasets.cifar import CIFAR10, CIFAR100, MEAN, MEAN_100, STD, STD_100, CIFAR10Options
from sslcli.datasets.stl10 import STL10, STL10Options

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE_NAMES = tuple(f"class{number:02d}" for number in range(100))
REAL = Path(os.environ.get("SSLCLI_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "cifar10"))


def write(folder: Path, name: str, content: bytes) -> list[str]:
    """Returns what torchvision keeps of a file: its name and checksum."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return [name, hashlib.md5(content).hexdigest()]


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, fine: bool) -> None:
    """The original's files: CIFAR-10 with 20 images in each of the six batches, CIFAR-100 with 200 and 100."""
    reader, folder = (
        (datasets.CIFAR100, root / "cifar-100-python") if fine else (datasets.CIFAR10, root / "cifar-10-batches-py")
    )
    names = ["train", "test"] if fine else [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    draw = np.random.default_rng(0)
    lists = []
    for name in names:
        count = {"train": 200, "test": 100}.get(name, 20)
        content: dict[str, Any] = {"data": draw.integers(0, 256, (count, 3072), dtype=np.uint8)}
        if fine:
            content |= {"fine_labels": [n % 100 for n in range(count)], "coarse_labels": [n % 20 for n in range(count)]}
        else:
            content["labels"] = [n % 10 for n in range(count)]
        lists.append(write(folder, name, pickle.dumps(content)))
    file, key, classes = ("meta", "fine_label_names", FINE_NAMES) if fine else ("batches.meta", "label_names", NAMES)
    digest = write(folder, file, pickle.dumps({key: list(classes)}))[1]
    monkeypatch.setattr(reader, "train_list", lists[:-1])
    monkeypatch.setattr(reader, "test_list", lists[-1:])
    monkeypatch.setattr(reader, "meta", {"filename": file, "key": key, "md5": digest})


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's files: planes of columns, labels from 1 to 10, a line of indices for each fold."""
    folder, draw = root / "stl10_binary", np.random.default_rng(0)
    digests = {}
    for name, count in {"train_X.bin": 20, "test_X.bin": 10, "unlabeled_X.bin": 6}.items():
        digests[name] = write(folder, name, draw.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tobytes())[1]
        labels = name.replace("X", "y")
        digests[labels] = write(folder, labels, bytes(n % 10 + 1 for n in range(count)))[1]
    write(folder, "fold_indices.txt", "".join(f"{fold} {fold + 10} \n" for fold in range(10)).encode())
    write(folder, "class_names.txt", "".join(f"{name}\n" for name in stl10.CLASSES).encode())
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, [[name, digests[name]] for name in names])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_cifar(tmp_path, monkeypatch, fine=False)
    write_cifar(tmp_path, monkeypatch, fine=True)
    write_stl10(tmp_path, monkeypatch)
    return tmp_path


def stl10_pixels(root: Path, name: str, index: int) -> torch.Tensor:
    content = np.fromfile(root / "stl10_binary" / name, dtype=np.uint8).reshape(-1, 3, 96, 96)
    return torch.from_numpy(content[index]).transpose(1, 2)  # the file's planes run down the columns


def test_images_and_labels_of_cifar_are_those_of_the_files(root: Path) -> None:
    data = CIFAR10(CIFAR10Options(root=root))
    batch = pickle.loads((root / "cifar-10-batches-py" / "data_batch_3").read_bytes())
    assert torch.equal(data.image(47), torch.from_numpy(batch["data"][7]).view(3, 32, 32))
    assert (len(data), int(data.labels[47]), data.labels.dtype) == (100, 7, torch.int64)
    test = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    held_out = CIFAR10(CIFAR10Options(root=root, split="test"))
    assert torch.equal(held_out.images().flatten(1), torch.from_numpy(test["data"]))
    fine = pickle.loads((root / "cifar-100-python" / "train").read_bytes())
    data = CIFAR100(CIFAR10Options(root=root))
    assert torch.equal(data.images().flatten(1), torch.from_numpy(fine["data"]))
    assert data.labels.tolist() == fine["fine_labels"]


def test_images_of_stl10_are_upright_and_labels_count_from_zero(root: Path) -> None:
    data = STL10(STL10Options(root=root, split="train"))
    assert torch.equal(data.image(13), stl10_pixels(root, "train_X.bin", 13))
    assert data.images().is_contiguous()
    assert data.labels is not None
    assert (len(data), data.labels.tolist()) == (20, [n % 10 for n in range(20)])
    assert data.labels.dtype == torch.int64


def test_splits_of_stl10_are_those_of_the_files_and_the_unlabeled_ones_have_no_labels(root: Path) -> None:
    test = STL10(STL10Options(root=root, split="test"))
    assert (len(test), test.labels is None) == (10, False)
    unlabeled = STL10(STL10Options(root=root, split="unlabeled"))
    assert (len(unlabeled), unlabeled.labels, unlabeled.info.classes) == (6, None, None)
    both = STL10(STL10Options(root=root))
    assert (len(both), both.labels) == (26, None)
    assert torch.equal(both.image(19), stl10_pixels(root, "train_X.bin", 19))
    assert torch.equal(both.image(20), stl10_pixels(root, "unlabeled_X.bin", 0))
    assert len(STL10(STL10Options(root=root, limit=5))) == 5


def test_a_fold_of_stl10_has_its_own_training_images(root: Path) -> None:
    data = STL10(STL10Options(root=root, split="train", folds=3))
    assert torch.equal(data.image(1), stl10_pixels(root, "train_X.bin", 13))
    assert data.labels is not None
    assert data.labels.tolist() == [3, 3]
    assert len(STL10(STL10Options(root=root, split="train+unlabeled", folds=0))) == 8


@pytest.mark.parametrize(
    ("cls", "name", "size", "classes", "statistics"),
    [
        (CIFAR10, "cifar10", 32, NAMES, (MEAN, STD)),
        (CIFAR100, "cifar100", 32, FINE_NAMES, (MEAN_100, STD_100)),
        (STL10, "stl10", 96, stl10.CLASSES, (stl10.MEAN, stl10.STD)),
    ],
)
def test_info_is_that_of_the_published_data(
    root: Path, cls: Any, name: str, size: int, classes: Any, statistics: Any
) -> None:
    info = cls(cls.Options(root=root, split="train")).info
    assert (info.name, info.channels, info.image_size, info.classes) == (name, 3, (size, size), classes)
    assert (info.mean, info.std) == statistics
    assert cls.view_size(cls.Options()) == size


def test_a_probe_is_fitted_on_the_limited_train_split_and_evaluated_on_all_of_test(root: Path) -> None:
    options = CIFAR10Options(root=root, limit=30)
    assert CIFAR10.labeled(options, "train") == options
    assert CIFAR10.labeled(options, "eval") == CIFAR10Options(root=root, split="test")
    whole, part = CIFAR10(options), limited(CIFAR10(options))
    assert part.labels is not None
    assert part.labels.bincount().tolist() == [3] * 10
    for index, label in enumerate(part.labels.tolist()):
        (found,) = [n for n in range(100) if torch.equal(whole.image(n), part.image(index))]
        assert int(whole.labels[found]) == label


def test_a_probe_for_stl10_uses_train_and_test_whatever_was_trained_on(root: Path) -> None:
    options = STL10Options(root=root, split="train+unlabeled", limit=5, folds=1)
    train = options.model_copy(update={"split": "train"})
    assert STL10.labeled(options, "train") == STL10Options(root=root, split="train")
    assert STL10.labeled(train, "train") == train
    for each in (options, train):
        assert STL10.labeled(each, "eval") == STL10Options(root=root, split="test")


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (CIFAR100, {"split": "val"}),
        (STL10, {"split": "val"}),
        (STL10, {"folds": 10}),
        (STL10, {"split": "test", "folds": 1}),
        (STL10, {"split": "unlabeled", "folds": 1}),
    ],
)
def test_options_that_make_no_sense_are_refused(cls: Any, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cls.Options.parse(wrong)


def test_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(CIFAR10(CIFAR10Options(root=Path("~") / root.name))) == 100


@pytest.mark.parametrize(("cls", "title"), [(CIFAR10, "CIFAR-10"), (CIFAR100, "CIFAR-100"), (STL10, "STL-10")])
def test_missing_data_is_reported_with_folder_and_remedy(tmp_path: Path, cls: Any, title: str) -> None:
    folder = tmp_path / "nowhere"
    with pytest.raises(
        UserError, match=rf"^data\.root: no {title} in {folder}/[^\n]*data\.download=true[^\n]*data\.root[^\n]*$"
    ):
        cls(cls.Options(root=folder))
    assert not folder.exists()


def flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def cut(content: bytes) -> bytes:
    return content[:-5]


FILES = [
    (CIFAR10, "cifar-10-batches-py/data_batch_2"),
    (CIFAR10, "cifar-10-batches-py/batches.meta"),
    (CIFAR100, "cifar-100-python/train"),
    (CIFAR100, "cifar-100-python/test"),
    (CIFAR100, "cifar-100-python/meta"),
    (STL10, "stl10_binary/train_X.bin"),
    (STL10, "stl10_binary/test_y.bin"),
    (STL10, "stl10_binary/unlabeled_X.bin"),
]


@pytest.mark.parametrize("damage", [flip, cut, None])
@pytest.mark.parametrize(("cls", "name"), FILES)
def test_damaged_and_missing_files_are_reported(
    root: Path, cls: Any, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    if damage is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(damage((root / name).read_bytes()))
    with pytest.raises(
        UserError, match=rf"^data\.root: damaged or incomplete [^\n]* in {(root / name).parent};[^\n]*$"
    ):
        cls(cls.Options(root=root))


@pytest.mark.parametrize(("cls", "name"), [FILES[0], FILES[3], FILES[7]])
def test_missing_files_are_fetched_on_request_and_stdout_stays_free(
    root: Path, cls: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, calls = (root / name).read_bytes(), []

    def download(self: object) -> None:
        calls.append(print("Downloading"))
        (root / name).write_bytes(content)

    monkeypatch.setattr(getattr(datasets, cls.__name__), "download", download)
    options = cls.Options(root=root, download=True)
    assert len(cls(options)) > 0
    assert calls == []  # the files are there
    (root / name).unlink()
    assert len(cls(options)) > 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading" in captured.err


def no_network(self: object) -> None:
    raise URLError("no route\nto host")


@pytest.mark.parametrize(("cls", "title"), [(CIFAR10, "CIFAR-10"), (CIFAR100, "CIFAR-100"), (STL10, "STL-10")])
def test_a_failed_download_is_one_clear_line(
    tmp_path: Path, cls: Any, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(datasets, cls.__name__), "download", no_network)
    with pytest.raises(UserError, match=rf"^data\.download: {title} could not be downloaded to [^\n]*no route[^\n]*$"):
        cls(cls.Options(root=tmp_path, download=True))


def test_fetched_data_with_a_wrong_checksum_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "cifar-100-python" / "train"
    file.unlink()
    monkeypatch.setattr(datasets.CIFAR100, "download", lambda self: file.write_bytes(b"an error page"))
    with pytest.raises(UserError, match=r"^data\.download: CIFAR-100 could not be downloaded to [^\n]*$"):
        CIFAR100(CIFAR10Options(root=root, download=True))


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason=f"no CIFAR-10 in {REAL}; SSLCLI_TEST_DATA says where it is"
)
def test_the_real_data_has_the_statistics_that_views_are_normalized_with() -> None:
    data = CIFAR10(CIFAR10Options(root=REAL))
    assert len(data) == 50_000
    assert data.info.classes == NAMES
    assert data.labels.bincount().tolist() == [5000] * 10
    mean, std = channel_statistics(data.images()[::10])
    assert mean == pytest.approx(MEAN, abs=5e-3)
    assert std == pytest.approx(STD, abs=5e-3)
