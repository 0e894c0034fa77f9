from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.data.normalization import IMAGENET
from sslcli.data.paths import PathList
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.images import Images, ImagesOptions


def put(root: Path, *names: str, size: tuple[int, int] = (6, 4)) -> None:
    """Writes images; the n-th is filled with n."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, number, number)).save(root / name, "PNG")


def names(data: Folder | Images) -> list[str]:
    return [data.name_of(index) for index in range(len(data))]


def refusal(cls: type, root: Path, **options: object) -> str:
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


def test_extensions_count_in_any_case_and_hidden_or_other_files_do_not(tmp_path: Path) -> None:
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


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "bus/1.png", "train/2.png")
    data = Folder(FolderOptions(root=tmp_path))
    assert data.info.classes == ("bus", "train")
    assert Folder.labeled(data.options, "eval") is None


def test_split_all_reads_the_root_itself(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "val/2.png")
    options = FolderOptions(root=tmp_path, split="all")
    assert Folder(options).info.classes == ("train", "val")
    assert Folder.labeled(options, "train") is None


def test_labels_of_val_are_those_of_train_where_a_class_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png")
    data = Folder(FolderOptions(root=tmp_path, split="val"))
    assert data.labels.tolist() == [1]
    assert data.info.classes == ("a", "b")


def test_class_that_only_val_has_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "val/b/2.png")
    message = refusal(Folder, tmp_path, split="val")
    assert "'b'" in message
    assert str(tmp_path / "train") in message


def test_limit_belongs_to_the_split_it_was_given_for(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{c}/{n}.png" for c in "ab" for n in range(6)), "val/a/1.png", "val/b/2.png")
    options = FolderOptions(root=tmp_path, limit=4)
    data = Folder(options)
    assert data.labels.bincount().tolist() == [2, 2]
    assert all(name.startswith("ab"[label]) for name, label in zip(names(data), data.labels.tolist(), strict=True))
    assert Folder.labeled(options, "eval") == FolderOptions(root=tmp_path, split="val")
    on_val = FolderOptions(root=tmp_path, split="val", limit=1)
    assert Folder.labeled(on_val, "train") == FolderOptions(root=tmp_path, split="train")


def test_missing_folder_file_and_split_are_told(tmp_path: Path) -> None:
    assert "does not exist" in refusal(Folder, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(Images, tmp_path / "file")
    put(tmp_path, "a/1.png")
    assert "data.split: 'val' needs val/" in refusal(Folder, tmp_path, split="val")


def test_folders_without_images_are_told(tmp_path: Path) -> None:
    assert "no images" in refusal(Images, tmp_path)
    assert "data.name=images" in refusal(Folder, tmp_path)
    put(tmp_path, "1.png")
    assert "no class folders" in refusal(Folder, tmp_path)
    put(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    message = refusal(Folder, tmp_path)
    assert str(tmp_path / "b") in message
    assert "no images" in message


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos", "train/a/1.png", "val/a/2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = FolderOptions(root=Path("~/photos"))
    assert len(Folder(options)) == 1
    assert Folder.labeled(options, "eval") is not None
    assert len(Images(ImagesOptions(root=Path("~/photos")))) == 2


def test_images_have_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "x/2.png")
    data = Images(ImagesOptions(root=tmp_path))
    assert data.labels is None
    assert data.info.classes is None
    assert Images.labeled(data.options, "train") is None
    assert len(Images(ImagesOptions(root=tmp_path, limit=1))) == 1


def test_gray_on_request_with_one_channel_of_statistics(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    data = Folder(FolderOptions(root=tmp_path, channels=1))
    assert data.image(0).shape == (1, 4, 6)
    assert (data.info.channels, len(data.info.mean)) == (1, 1)
    color = Folder(FolderOptions(root=tmp_path))
    assert (color.info.mean, color.info.std) == IMAGENET[3]
    assert (color.info.image_size, Folder.view_size(color.options)) == (None, 224)


def test_damaged_image_is_unreadable_when_it_is_read_and_not_before(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("wrong", [{"split": "eval"}, {"channels": 2}, {"max_unreadable": 2.0}, {"limit": 0}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FolderOptions.parse(wrong)


def test_path_list_holds_any_names() -> None:
    paths = ["a/1.png", "ü/ñ 2.png", "", "b" * 300]
    packed = PathList(paths)
    assert len(packed) == 4
    assert list(packed) == paths
    assert packed[1:3] == paths[1:3]
    assert packed[-1] == paths[-1]
    with pytest.raises(IndexError):
        packed[4]


def test_empty_path_list_is_empty() -> None:
    assert list(PathList([])) == []
    assert torch.equal(torch.tensor(len(PathList([]))), torch.tensor(0))
