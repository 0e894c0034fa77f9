"""Test images that are training images too: found in memory and on disk, a few reported, many refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_helpers import InMemory, PlainSubject, clusters
from PIL import Image

from sslcli.contracts.errors import UserError
from sslcli.datasets.folder import Folder
from sslcli.evaluation.overlap import check_overlap, find_overlap
from sslcli.evaluators.knn import KNN, KNNOptions
from sslcli.testing.stand_ins import pixels


def planted(shared: int) -> tuple[InMemory, InMemory]:
    train, test = (InMemory(torch.arange(n) % 4, n, split=split) for n, split in ((150, "train"), (200, "test")))
    test.pixels[10 : 10 + shared] = train.pixels[150 - shared :]
    return train, test


def test_equal_bytes_in_memory_are_found_and_one_other_byte_makes_another_image():
    assert find_overlap(*planted(0)) == ([], "the images' bytes")
    train, test = planted(3)
    assert find_overlap(train, test)[0] == [10, 11, 12]
    test.pixels[11, 2, 7, 7] ^= 1
    assert find_overlap(train, test)[0] == [10, 12]
    assert find_overlap(train, InMemory(torch.arange(8), 8, size=9, split="test"))[0] == []


def test_many_shared_images_are_refused_and_a_few_are_reported(messages):
    with pytest.raises(UserError, match=r"memory: 3 of the 200 test images .* such as memory\[10\]") as caught:
        check_overlap(*planted(3))
    assert "\n" not in str(caught.value)
    assert check_overlap(*planted(0)) == {"shared_images": 0, "compared": "the images' bytes"}
    assert messages == []
    assert check_overlap(*planted(2)) == {"shared_images": 2, "compared": "the images' bytes"}
    assert messages[0].startswith("warning: memory: 2 of the 200 test images")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, image in enumerate(pixels(24, 3, 8, 8, seed=3)):
        folder = tmp_path / "root" / ("train" if index < 12 else "val") / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:02d}.png")
    return tmp_path / "root"


def folders(root: Path) -> tuple[Folder, Folder]:
    options = Folder.Options.parse({"root": str(root)})
    return Folder.open(Folder.labeled(options, "train")), Folder.open(Folder.labeled(options, "eval"))


@pytest.mark.parametrize("way", [os.symlink, os.link, shutil.copy, None])
def test_the_same_file_is_found_through_links_and_as_a_copy(root, way):
    if way is not None:
        way(root / "train" / "cat" / "03.png", root / "val" / "dog" / "zz.png")
    train, test = folders(root)
    assert [test.name_of(index) for index in find_overlap(train, test)[0]] == (["dog/zz.png"] if way else [])


def test_a_symlinked_folder_is_refused(root):
    shutil.move(root / "val", root / "kept")
    (root / "val").symlink_to(root / "train")
    with pytest.raises(UserError, match="12 of the 12 test images are among the training images"):
        check_overlap(*folders(root))


def test_how_images_were_compared_is_reported(root, monkeypatch):
    shutil.copy(root / "train" / "cat" / "03.png", root / "val" / "dog" / "zz.png")
    (root / "val" / "dog" / "zy.png").symlink_to(root / "train" / "cat" / "05.png")
    monkeypatch.setattr("sslcli.evaluation.overlap.CONTENT_BYTES", 10)
    found, compared = find_overlap(*folders(root))
    assert (len(found), compared) == (1, "the files, through links")  # too many bytes to read: the copy is not found
    assert find_overlap(planted(0)[0], folders(root)[1])[1].startswith("nothing")


def test_knn_does_not_search_the_points_that_it_predicts():
    """One of the bugs of older libraries: every image would find itself."""
    same = PlainSubject(clusters(30, 4), clusters(30, 4), 4)
    same.data["eval"] = same.data["train"]
    with pytest.raises(UserError, match="the training and the test images are the same"):
        KNN(KNNOptions()).evaluate(same)
    assert same.read == []
