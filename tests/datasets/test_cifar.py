from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import UserError
from sslcli.datasets.cifar import CIFAR10, MEAN, STD, CIFAR10Options

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
REAL = Path(os.environ.get("SSLCLI_TEST_DATA", Path(__file__).parents[3] / "shared" / "data" / "cifar10"))


def write(folder: Path, name: str, content: object) -> list[str]:
    data = pickle.dumps(content)
    (folder / name).write_bytes(data)
    return [name, hashlib.md5(data).hexdigest()]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 in the original's files, with 20 images in each of the six batches."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.default_rng(0)
    lists = []
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        pixels = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        lists.append(write(folder, name, {"data": pixels, "labels": [n % 10 for n in range(20)]}))
    meta = write(folder, "batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]})
    return tmp_path


def refusal(options: CIFAR10Options) -> str:
    with pytest.raises(UserError) as caught:
        CIFAR10(options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_images_are_those_of_the_files_planes_first(tiny: Path) -> None:
    data = CIFAR10(CIFAR10Options(root=tiny))
    assert len(data) == 100
    batch = pickle.loads((tiny / "cifar-10-batches-py" / "data_batch_3").read_bytes())
    expected = torch.from_numpy(batch["data"][7]).view(3, 32, 32)
    assert torch.equal(data.image(47), expected)
    images = data.images()
    assert images.dtype == torch.uint8
    assert torch.equal(images[47], expected)
    assert int(data.labels[47]) == 7
    assert data.labels.dtype == torch.int64


def test_what_is_known_of_the_data(tiny: Path) -> None:
    info = CIFAR10(CIFAR10Options(root=tiny)).info
    assert (info.name, info.channels, info.image_size, info.classes) == ("cifar10", 3, (32, 32), tuple(NAMES))
    assert CIFAR10.view_size(CIFAR10Options()) == 32


def test_split_test_is_the_test_batch(tiny: Path) -> None:
    data = CIFAR10(CIFAR10Options(root=tiny, split="test"))
    batch = pickle.loads((tiny / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(data.images().flatten(1), torch.from_numpy(batch["data"]))


def test_limit_takes_the_same_share_of_each_class_with_its_images(tiny: Path) -> None:
    whole, part = CIFAR10(CIFAR10Options(root=tiny)), CIFAR10(CIFAR10Options(root=tiny, limit=30))
    assert part.labels.bincount().tolist() == [3] * 10
    for image, label in zip(part.images(), part.labels, strict=True):
        places = [n for n in range(100) if torch.equal(whole.image(n), image)]
        assert [int(whole.labels[n]) for n in places] == [int(label)]


def test_probe_is_fitted_on_the_limited_train_split_and_judged_on_all_of_test(tiny: Path) -> None:
    options = CIFAR10Options(root=tiny, limit=10)
    fit, judge = CIFAR10.labeled(options, "train"), CIFAR10.labeled(options, "eval")
    assert fit == options
    assert judge == CIFAR10Options(root=tiny, split="test")
    assert len(CIFAR10(CIFAR10Options(root=tiny, limit=10, split="test"))) == 10


def test_home_is_expanded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert len(CIFAR10(CIFAR10Options(root=Path("~") / tiny.name))) == 100


def test_missing_data_are_told_with_folder_and_remedy(tmp_path: Path) -> None:
    message = refusal(CIFAR10Options(root=tmp_path / "nowhere"))
    assert "no CIFAR-10 in" in message
    assert str(tmp_path / "nowhere") in message
    assert "data.download=true" in message
    assert "data.root" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_damaged_data_are_refused(tiny: Path, name: str) -> None:
    file = tiny / "cifar-10-batches-py" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    message = refusal(CIFAR10Options(root=tiny))
    assert "damaged or incomplete" in message
    assert str(tiny / "cifar-10-batches-py") in message


def test_download_is_not_tried_where_the_data_are(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: pytest.fail("downloaded"))
    assert len(CIFAR10(CIFAR10Options(root=tiny, download=True))) == 100


def test_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    message = refusal(CIFAR10Options(root=tmp_path, download=True))
    assert "could not be fetched" in message
    assert "no route" in message
    assert str(tmp_path) in message


def test_download_does_not_write_to_stdout(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny / "cifar-10-batches-py" / "data_batch_1"
    content = file.read_bytes()
    file.unlink()

    def download(self: object) -> None:
        print("Downloading")
        file.write_bytes(content)

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    assert len(CIFAR10(CIFAR10Options(root=tiny, download=True))) == 100
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading" in captured.err


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason=f"no CIFAR-10 in {REAL}; SSLCLI_TEST_DATA says where it is"
)
def test_real_data_have_the_statistics_that_views_are_normalized_with() -> None:
    data = CIFAR10(CIFAR10Options(root=REAL))
    assert len(data) == 50_000
    assert data.info.classes == tuple(NAMES)
    assert data.labels.bincount().tolist() == [5000] * 10
    mean, std = channel_statistics(data.images()[::10])
    assert mean == pytest.approx(MEAN, abs=5e-3)
    assert std == pytest.approx(STD, abs=5e-3)
