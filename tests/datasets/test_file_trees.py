"""Datasets of image files: `folder`, `images` and `imagenet`."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import ImageFolder

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.data.normalization import IMAGENET
from sslcli.data.paths import PathList
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.imagenet import ImageNet, ImageNetOptions
from sslcli.datasets.images import Images, ImagesOptions

TENCH, CRANE, CRANE_2 = "n01440764", "n02012849", "n03126707"


def put(root: Path, *names: str, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    """Writes images; the n-th is filled with n."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        color = number if mode == "L" else (number,) * len(mode)
        Image.new(mode, size, color).save(root / name, "PNG" if mode == "RGB" else None)


def put_split(folder: Path, count: int, synsets: tuple[str, ...] = (TENCH, CRANE, CRANE_2)) -> None:
    put(folder, *(f"{synset}/{synset}_{number}.JPEG" for synset in synsets for number in range(count)))


def names(data: Dataset) -> list[str]:
    return [data.name_of(index) for index in range(len(data))]


def refusal(cls: Any, root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        cls(cls.Options(root=root, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_follow_the_sorted_class_names(tmp_path: Path) -> None:
    put(tmp_path, "b/2.png", "a/1.png", "b/1.png", "c/1.png")
    data = Folder(FolderOptions(root=tmp_path))
    assert names(data) == ["a/1.png", "b/1.png", "b/2.png", "c/1.png"]
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert data.info.classes == ("a", "b", "c")
    assert [int(data.image(index)[0, 0, 0]) for index in range(4)] == [1, 2, 0, 3]
    assert data.image(0).shape == (3, 4, 6)
    assert (data.info.image_size, data.info.mean, data.info.std) == (None, *IMAGENET[3])


def test_the_case_of_extensions_is_ignored_and_hidden_or_other_files_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a/1.JPG", "a/2.Png", "a/deep/3.webp", "a/.4.png", "a/.cache/5.png", ".git/6.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert names(Folder(FolderOptions(root=tmp_path))) == ["a/1.JPG", "a/2.Png", "a/deep/3.webp"]
    assert names(Images(ImagesOptions(root=tmp_path))) == ["a/1.JPG", "a/2.Png", "a/deep/3.webp"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "1.png")
    root = tmp_path / "root"
    put(root, "a/2.png")
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root / "a")
    assert names(Folder(FolderOptions(root=root))) == ["a/2.png", "a/linked/1.png"]


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_train_and_val_folders_are_splits(tmp_path: Path, held_out: str) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{held_out}/a/3.png", f"{held_out}/b/4.png")
    options = FolderOptions(root=tmp_path)
    assert names(Folder(options)) == ["a/1.png", "b/2.png"]
    assert names(Folder(FolderOptions(root=tmp_path, split="val"))) == ["a/3.png", "b/4.png"]
    assert Folder.labeled(options, "train") == options
    assert Folder.labeled(options, "eval") == FolderOptions(root=tmp_path, split="val")


def test_a_class_may_be_called_train_and_split_all_reads_the_root_itself(tmp_path: Path) -> None:
    put(tmp_path, "bus/1.png", "train/2.png")
    data = Folder(FolderOptions(root=tmp_path))
    assert data.info.classes == ("bus", "train")
    assert Folder.labeled(data.options, "eval") is None
    put(tmp_path, "val/3.png")
    options = FolderOptions(root=tmp_path, split="all")
    assert Folder(options).info.classes == ("bus", "train", "val")
    assert Folder.labeled(options, "train") is None


@pytest.mark.parametrize("cls", [Folder, ImageNet])
def test_labels_of_val_are_those_of_train_where_a_class_is_missing(tmp_path: Path, cls: Any) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png")
    data = cls(cls.Options(root=tmp_path, split="val"))
    assert (data.labels.tolist(), data.info.classes) == ([1], ("a", "b"))
    put(tmp_path, "val/c/4.png")
    message = refusal(cls, tmp_path, split="val")
    assert "'c'" in message
    assert str(tmp_path / "train") in message


@pytest.mark.parametrize("cls", [Folder, ImageNet])
def test_a_limit_applies_to_the_split_it_was_given_for(tmp_path: Path, cls: Any) -> None:
    put(tmp_path, *(f"train/{c}/{n}.png" for c in "ab" for n in range(6)), "val/a/1.png", "val/b/2.png")
    options = cls.Options(root=tmp_path, limit=4, split="train")
    data = cls(options)
    assert data.labels.bincount().tolist() == [2, 2]
    assert all(name.startswith("ab"[label]) for name, label in zip(names(data), data.labels.tolist(), strict=True))
    assert cls.labeled(options, "train") == options
    assert cls.labeled(options, "eval") == cls.Options(root=tmp_path, split="val")
    on_val = cls.Options(root=tmp_path, split="val", limit=1)
    assert cls.labeled(on_val, "train") == cls.Options(root=tmp_path, split="train")


def test_missing_folders_files_and_splits_are_reported(tmp_path: Path) -> None:
    for cls in (Folder, ImageNet, Images):
        assert "does not exist" in refusal(cls, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(Images, tmp_path / "file")
    assert "no images" in refusal(Images, tmp_path)
    assert "data.name=images" in refusal(Folder, tmp_path)
    put(tmp_path, "1.png")
    assert "no class folders" in refusal(Folder, tmp_path)
    put(tmp_path, "a/1.png")
    assert "data.split: 'val' needs val/" in refusal(Folder, tmp_path, split="val")
    (tmp_path / "b").mkdir()
    message = refusal(Folder, tmp_path)
    assert (
        f"no images (.jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, .ppm, .pgm) in the class folder {tmp_path}/b"
        in message
    )


@pytest.mark.parametrize(("cls", "images"), [(Folder, 1), (ImageNet, 1), (Images, 2)])
def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, images: int) -> None:
    put(tmp_path / "photos", "train/a/1.png", "val/a/2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = cls.Options(root=Path("~/photos"))
    assert len(cls(options)) == images
    assert (cls.labeled(options, "eval") is None) is (cls is Images)


def test_images_have_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "x/2.png")
    data = Images(ImagesOptions(root=tmp_path))
    assert (data.labels, data.info.classes) == (None, None)
    assert Images.labeled(data.options, "train") is None
    assert len(Images(ImagesOptions(root=tmp_path, limit=1))) == 1


def test_gray_on_request_with_one_channel_of_statistics(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    data = Folder(FolderOptions(root=tmp_path, channels=1))
    assert data.image(0).shape == (1, 4, 6)
    assert (data.info.channels, len(data.info.mean)) == (1, 1)


def test_a_damaged_image_is_unreadable_when_it_is_read_and_not_before(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"nothing")
    data = Folder(FolderOptions(root=tmp_path))
    with pytest.raises(UnreadableImage, match=r"a/2\.png: not an image"):
        data.image(1)


def test_large_photographs_may_be_read_at_a_smaller_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (800, 400)).save(tmp_path / "a" / "1.jpg")
    data = Folder(FolderOptions(root=tmp_path))
    assert data.image_for(0, 100).shape == (3, 100, 200)
    assert data.image_for(0, None).shape == data.image(0).shape == (3, 400, 800)


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (Folder, {"split": "eval"}),
        (Folder, {"channels": 2}),
        (Folder, {"max_unreadable": 2.0}),
        (Folder, {"limit": 0}),
        (ImageNet, {"split": "test"}),
    ],
)
def test_options_that_make_no_sense_are_refused(cls: Any, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        cls.Options.parse(wrong)


@pytest.mark.parametrize(("part", "count"), [("train", 9), ("val", 6)])
def test_files_and_labels_of_imagenet_are_torchvisions(tmp_path: Path, part: str, count: int) -> None:
    put_split(tmp_path / "train", 3)
    put_split(tmp_path / "val", 2)
    data = ImageNet(ImageNetOptions.parse({"root": str(tmp_path), "split": part}))
    reference = ImageFolder(tmp_path / part)
    assert len(data) == count
    assert [str(tmp_path / part / name) for name in names(data)] == [path for path, _ in reference.samples]
    assert data.labels.tolist() == reference.targets
    assert data.info.classes == (TENCH, CRANE, CRANE_2) == tuple(reference.classes)
    assert (data.info.name, ImageNet.view_size(data.options)) == ("imagenet", 224)


def test_gray_and_four_colored_jpegs_become_rgb(tmp_path: Path) -> None:
    put(tmp_path, f"train/{TENCH}/gray.JPEG", mode="L")
    put(tmp_path, f"train/{TENCH}/print.JPEG", mode="CMYK")
    data = ImageNet(ImageNetOptions(root=tmp_path))
    assert [data.image(n).shape for n in range(2)] == [(3, 4, 6)] * 2


@pytest.mark.parametrize("layout", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
def test_kaggles_layout_is_found(tmp_path: Path, layout: str) -> None:
    put_split(tmp_path / layout / "train", 2)
    put_split(tmp_path / layout / "val", 1)
    options = ImageNetOptions(root=tmp_path)
    assert len(ImageNet(options)) == 6
    held_out = ImageNet.labeled(options, "eval")
    assert held_out == ImageNetOptions(root=tmp_path, split="val")
    assert len(ImageNet(held_out)) == 3


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (
            f"{TENCH} tench, Tinca tinca\n{CRANE} crane\n{CRANE_2} crane\nn99999999 something else\n".encode(),
            ("tench", f"crane ({CRANE})", f"crane ({CRANE_2})"),
        ),
        (b"n01440764 t\xffnch\n\nn02012849\n", ("t\ufffdnch", CRANE, CRANE_2)),
    ],
)
def test_kaggles_list_names_the_classes(tmp_path: Path, content: bytes, classes: tuple[str, ...]) -> None:
    put_split(tmp_path / "train", 1)
    put_split(tmp_path / "val", 1)
    (tmp_path / "LOC_synset_mapping.txt").write_bytes(content)
    for split in ("train", "val"):
        assert ImageNet(ImageNetOptions.parse({"root": str(tmp_path), "split": split})).info.classes == classes


def test_one_split_of_imagenet_can_be_read_but_no_probe_can_be_fitted(tmp_path: Path) -> None:
    put_split(tmp_path / "val", 2)
    options = ImageNetOptions(root=tmp_path, split="val")
    assert ImageNet(options).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert ImageNet.labeled(options, "train") is None
    assert ImageNet.labeled(options, "eval") is None


def test_a_missing_or_empty_split_of_imagenet_is_reported(tmp_path: Path) -> None:
    message = refusal(ImageNet, tmp_path)
    assert "data.root: no train/ or val/ in" in message
    assert "ILSVRC/Data/CLS-LOC" in message
    (tmp_path / "train").mkdir()
    assert f"no class folders in {tmp_path / 'train'}" in refusal(ImageNet, tmp_path)
    assert refusal(ImageNet, tmp_path, split="val").startswith(f"data.split: 'val' needs val/ in {tmp_path}")


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_archive_that_is_not_unpacked_is_reported_with_what_unpacks_it(tmp_path: Path, part: str) -> None:
    with tarfile.open(tmp_path / f"ILSVRC2012_img_{part}.tar", "w"):
        pass
    message = refusal(ImageNet, tmp_path, split=part)
    assert f"ILSVRC2012_img_{part}.tar is not unpacked" in message
    assert f"ImageNet('{tmp_path}', '{part}')" in message


def test_a_flat_val_folder_is_reported_with_what_to_do(tmp_path: Path) -> None:
    put_split(tmp_path / "train", 1)
    put(tmp_path / "val", "ILSVRC2012_val_00000001.JPEG")
    message = refusal(ImageNet, tmp_path, split="val")
    assert "are not in class folders" in message
    assert "folder named after its synset" in message


@pytest.mark.parametrize("paths", [["a/1.png", "ü/ñ 2.png", "", "b" * 300], []])
def test_a_path_list_holds_any_names(paths: list[str]) -> None:
    packed = PathList(paths)
    assert len(packed) == len(paths)
    assert list(packed) == paths
    assert packed[1:3] == paths[1:3]
    if paths:
        assert packed[-1] == paths[-1]
    with pytest.raises(IndexError):
        packed[len(paths)]
