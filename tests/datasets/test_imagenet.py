"""ImageNet on tiny copies in torchvision's and in Kaggle's layout."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import ImageFolder

from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.data.normalization import IMAGENET
from sslcli.datasets.imagenet import ImageNet, ImageNetOptions

TENCH, CRANE, CRANE_2 = "n01440764", "n02012849", "n03126707"


def put(root: Path, *names: str, mode: str = "RGB") -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (30, 20), number * 40 if mode == "L" else tuple([number * 40] * len(mode))).save(root / name)


def split(folder: Path, count: int, synsets: tuple[str, ...] = (TENCH, CRANE, CRANE_2)) -> None:
    put(folder, *(f"{synset}/{synset}_{number}.JPEG" for synset in synsets for number in range(count)))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """torchvision's layout with three classes, three training and two validation images in each."""
    split(tmp_path / "train", 3)
    split(tmp_path / "val", 2)
    return tmp_path


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        ImageNet(ImageNetOptions(root=root, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("part", "count"), [("train", 9), ("val", 6)])
def test_files_and_labels_are_torchvisions(tiny: Path, part: str, count: int) -> None:
    data = ImageNet(ImageNetOptions.parse({"root": str(tiny), "split": part}))
    reference = ImageFolder(tiny / part)
    assert len(data) == count
    assert [str(tiny / part / data.name_of(n)) for n in range(count)] == [path for path, _ in reference.samples]
    assert data.labels.tolist() == reference.targets
    assert data.labels.dtype == torch.int64
    assert data.info.classes == (TENCH, CRANE, CRANE_2) == tuple(reference.classes)
    assert data.image(1).shape == (3, 20, 30)


def test_what_is_known_of_the_data(tiny: Path) -> None:
    info = ImageNet(ImageNetOptions(root=tiny)).info
    assert (info.name, info.channels, info.image_size) == ("imagenet", 3, None)
    assert (info.mean, info.std) == IMAGENET[3]
    assert ImageNet.view_size(ImageNetOptions()) == 224


def test_gray_and_four_colored_jpegs_become_rgb(tmp_path: Path) -> None:
    put(tmp_path, f"train/{TENCH}/gray.JPEG", mode="L")
    put(tmp_path, f"train/{TENCH}/print.JPEG", mode="CMYK")
    data = ImageNet(ImageNetOptions(root=tmp_path))
    assert [data.image(n).shape for n in range(2)] == [(3, 20, 30)] * 2


@pytest.mark.parametrize("layout", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
def test_kaggles_layout_is_found(tmp_path: Path, layout: str) -> None:
    split(tmp_path / layout / "train", 2)
    split(tmp_path / layout / "val", 1)
    options = ImageNetOptions(root=tmp_path)
    assert len(ImageNet(options)) == 6
    judged = ImageNet.labeled(options, "eval")
    assert judged == ImageNetOptions(root=tmp_path, split="val")
    assert len(ImageNet(judged)) == 3


def test_kaggles_list_names_the_classes_and_the_synset_tells_like_names_apart(tiny: Path) -> None:
    (tiny / "LOC_synset_mapping.txt").write_text(
        f"{TENCH} tench, Tinca tinca\n{CRANE} crane\n{CRANE_2} crane\nn99999999 something else\n"
    )
    names = ("tench", f"crane ({CRANE})", f"crane ({CRANE_2})")
    assert ImageNet(ImageNetOptions(root=tiny)).info.classes == names
    assert ImageNet(ImageNetOptions(root=tiny, split="val")).info.classes == names


def test_class_that_the_list_does_not_name_keeps_its_synset(tiny: Path) -> None:
    (tiny / "LOC_synset_mapping.txt").write_bytes(b"n01440764 t\xffnch\n\nn02012849\n")
    assert ImageNet(ImageNetOptions(root=tiny)).info.classes == ("t�nch", CRANE, CRANE_2)


def test_subset_of_the_classes_in_val_keeps_the_labels_of_train(tmp_path: Path) -> None:
    split(tmp_path / "train", 2)
    split(tmp_path / "val", 2, (CRANE_2,))
    data = ImageNet(ImageNetOptions(root=tmp_path, split="val"))
    assert data.labels.tolist() == [2, 2]
    assert data.info.classes == (TENCH, CRANE, CRANE_2)


def test_val_alone_can_be_read(tmp_path: Path) -> None:
    split(tmp_path / "val", 2)
    assert ImageNet(ImageNetOptions(root=tmp_path, split="val")).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_class_that_only_val_has_is_refused(tmp_path: Path) -> None:
    split(tmp_path / "train", 1, (TENCH,))
    split(tmp_path / "val", 1, (TENCH, CRANE))
    assert CRANE in refusal(tmp_path, split="val")


def test_limit_takes_the_same_share_of_each_class_and_belongs_to_its_split(tiny: Path) -> None:
    options = ImageNetOptions(root=tiny, limit=6)
    assert ImageNet(options).labels.bincount().tolist() == [2, 2, 2]
    assert ImageNet.labeled(options, "train") == options
    assert ImageNet.labeled(options, "eval") == ImageNetOptions(root=tiny, split="val")
    on_val = ImageNetOptions(root=tiny, split="val", limit=3)
    assert ImageNet.labeled(on_val, "train") == ImageNetOptions(root=tiny)


def test_without_one_of_the_splits_there_is_nothing_to_fit_and_judge_a_probe_on(tmp_path: Path) -> None:
    split(tmp_path / "train", 1)
    options = ImageNetOptions(root=tmp_path)
    assert ImageNet.labeled(options, "train") is None
    assert ImageNet.labeled(options, "eval") is None


def test_missing_folder_and_splits_are_told(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    message = refusal(tmp_path)
    assert "data.root: no train/ or val/ in" in message
    assert "ILSVRC/Data/CLS-LOC" in message
    split(tmp_path / "train", 1)
    message = refusal(tmp_path, split="val")
    assert message.startswith("data.split: 'val' needs val/ in")
    assert str(tmp_path) in message


@pytest.mark.parametrize("part", ["train", "val"])
def test_archive_that_is_not_unpacked_is_told_with_what_unpacks_it(tmp_path: Path, part: str) -> None:
    with tarfile.open(tmp_path / f"ILSVRC2012_img_{part}.tar", "w"):
        pass
    message = refusal(tmp_path, split=part)
    assert f"ILSVRC2012_img_{part}.tar is not unpacked" in message
    assert f"ImageNet('{tmp_path}', '{part}')" in message


def test_flat_val_folder_is_told_with_what_to_do(tmp_path: Path) -> None:
    split(tmp_path / "train", 1)
    put(tmp_path / "val", "ILSVRC2012_val_00000001.JPEG")
    message = refusal(tmp_path, split="val")
    assert "no class folders" in message
    assert "folder named after its synset" in message


def test_empty_split_and_empty_class_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert f"no class folders in {tmp_path / 'train'}" in refusal(tmp_path)
    split(tmp_path / "train", 1, (TENCH,))
    (tmp_path / "train" / CRANE).mkdir()
    assert f"no images (.jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, .ppm, .pgm) in the class folder {tmp_path}" in (
        refusal(tmp_path)
    )


def test_damaged_image_is_unreadable_when_it_is_read_and_not_before(tiny: Path) -> None:
    file = tiny / "train" / TENCH / f"{TENCH}_1.JPEG"
    file.write_bytes(file.read_bytes()[:100])
    data = ImageNet(ImageNetOptions(root=tiny))
    assert len(data) == 9
    with pytest.raises(UnreadableImage, match=f"{TENCH}_1.JPEG"):
        data.image(1)


def test_home_is_expanded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    options = ImageNetOptions(root=Path("~") / tiny.name)
    assert len(ImageNet(options)) == 9
    assert ImageNet.labeled(options, "eval") is not None


def test_split_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError):
        ImageNetOptions.parse({"split": "test"})
