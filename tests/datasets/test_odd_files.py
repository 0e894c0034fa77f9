"""What may lie among images: links in circles, pipes and devices, folders nested deeply."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UnreadableImage
from sslcli.data.decode import decode
from sslcli.data.paths import image_files, skipped_files
from sslcli.datasets.folder import Folder, FolderOptions
from sslcli.datasets.images import Images, ImagesOptions


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(root / name)


def names(data: Dataset) -> list[str]:
    return [data.name_of(index) for index in range(len(data))]


def test_a_link_gives_no_image_twice_and_no_class_the_images_of_another(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "sub/1.png")
    (tmp_path / "elsewhere" / "sub" / "again").symlink_to("..")
    root = tmp_path / "root"
    put(root, "cat/2.png", "dog/3.png", ".hidden/4.png")
    for name, target in {"loop": "..", "sibling": "../dog", "itself": ".", "far": "../../elsewhere"}.items():
        (root / "cat" / name).symlink_to(target)
    (root / "dog" / "near").symlink_to("../.hidden")
    data = Folder(FolderOptions(root=root))
    assert names(data) == ["cat/2.png", "cat/far/sub/1.png", "dog/3.png", "dog/near/4.png"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert skipped_files(data.skipped) == "4 others skipped (links to a folder that is read anyway 4)"
    (root / "far").symlink_to(tmp_path / "elsewhere" / "sub")  # cat/far, which comes first, has it
    images = Images(ImagesOptions(root=root))
    assert names(images) == ["cat/2.png", "cat/far/sub/1.png", "dog/3.png", "dog/near/4.png"]
    assert names(Images(ImagesOptions(root=root / "cat" / "loop"))) == names(images)


def test_a_link_into_what_a_later_one_leads_to_gives_no_image_twice(tmp_path: Path) -> None:
    put(tmp_path / "far", "1.png", "sub/2.png", "sub/deep/3.png", "sub/.hidden/4.png")
    root = tmp_path / "root"
    root.mkdir()
    for name, target in {
        "a": "far/sub/.hidden",
        "b": "far/sub/deep",
        "c": "far/sub",
        "d": "far",
        "e": "far/sub",
    }.items():
        (root / name).symlink_to(tmp_path / target)
    data = Images(ImagesOptions(root=root))
    assert names(data) == ["a/4.png", "b/3.png", "c/2.png", "d/1.png"]
    assert data.skipped == {"folders that a link has led to": 2, "links to a folder that is read anyway": 1}


def lines_run(root: Path) -> int:
    """How many lines of Python it takes to list a folder."""
    count, before = 0, sys.gettrace()

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        assert sum(1 for _ in image_files(root)) == 0
    finally:
        sys.settrace(before)
    return count


def test_the_work_for_links_grows_as_their_number(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for root, count in ((few, 20), (many, 100)):
        root.mkdir()
        for number in range(count):
            (tmp_path / "far" / str(number)).mkdir(parents=True, exist_ok=True)
            (root / str(number)).symlink_to(tmp_path / "far" / str(number))
    assert lines_run(many) < 6 * lines_run(few)


def test_pipes_are_skipped_and_links_to_nothing_are_unreadable_images(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("3.png")
    (tmp_path / "4.png").symlink_to("nowhere")
    (tmp_path / "5.png").symlink_to("/dev/zero")
    data = Images(ImagesOptions(root=tmp_path))
    assert names(data) == ["1.png", "3.png", "4.png"]
    assert skipped_files(data.skipped) == "2 others skipped (pipes and devices 2)"
    for name in ("2.png", "3.png", "4.png", "5.png", "."):  # also what becomes one later
        with pytest.raises(UnreadableImage):
            decode(tmp_path / name)


def test_folders_may_be_nested_deeper_than_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepest = tmp_path.joinpath(*["d"] * 150)
    put(deepest, "1.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        found = names(Images(ImagesOptions(root=tmp_path)))
    finally:
        sys.setrecursionlimit(limit)
    assert found == ["d/" * 150 + "1.png"]


@pytest.mark.parametrize("held_out", ["validation", "valid"])
def test_other_names_of_held_out_images_are_no_class(tmp_path: Path, held_out: str) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{held_out}/b/3.png")
    data = Folder(FolderOptions(root=tmp_path))
    assert (names(data), data.info.classes) == (["a/1.png", "b/2.png"], ("a", "b"))
    tested = Folder.labeled(data.options, "eval")
    assert tested is not None
    assert (names(Folder(tested)), Folder(tested).labels.tolist()) == (["b/3.png"], [1])
