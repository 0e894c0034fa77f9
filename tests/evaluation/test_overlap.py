"""Images to fit on that are also images to judge on: found in memory and on disk, a few told, many refused."""

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
from sslcli.evaluation.overlap import check_overlap, find_overlap, hash_images
from sslcli.evaluation.subject import require_parts
from sslcli.evaluators.knn import KNN, KNNOptions
from sslcli.testing.stand_ins import pixels


def in_memory(count: int, split: str) -> InMemory:
    return InMemory(torch.arange(count) % 4, count, split=split)


def planted(shared: int, judged: int = 200) -> tuple[InMemory, InMemory]:
    first, second = in_memory(150, "train"), in_memory(judged, "test")
    second.pixels[10 : 10 + shared] = first.pixels[-shared:] if shared else second.pixels[10:10]
    return first, second


def test_equal_bytes_in_memory_are_found_where_they_are():
    assert find_overlap(*planted(3)).places == (10, 11, 12)
    assert find_overlap(*planted(0)).places == ()


def test_one_other_byte_makes_another_image():
    first, second = planted(3)
    second.pixels[11, 2, 7, 7] ^= 1
    assert find_overlap(first, second).places == (10, 12)


def test_many_shared_images_are_refused_and_a_few_are_told():
    with pytest.raises(UserError, match=r"memory: 3 of the 200 images to judge on .* such as memory\[10\]") as caught:
        check_overlap(*planted(3))
    assert "\n" not in str(caught.value)
    described, line = check_overlap(*planted(2))
    assert described == {"shared_images": 2, "compared": "the images' bytes"}
    assert line.startswith("memory: 2 of the 200 images")
    assert check_overlap(*planted(0)) == ({"shared_images": 0, "compared": "the images' bytes"}, None)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (3, 1, 1)])
def test_hashes_are_of_all_bytes_and_of_their_order(shape):
    images = pixels(50, *shape)
    assert len(hash_images(images).unique()) == len(images.flatten(1).unique(dim=0))
    assert torch.equal(hash_images(images), torch.cat([hash_images(image[None]) for image in images]))
    if images[0].numel() > 3:
        assert not torch.equal(hash_images(images.flip(-1)), hash_images(images))


def test_images_of_other_sizes_are_not_compared_in_memory():
    assert find_overlap(in_memory(8, "train"), InMemory(torch.arange(8), 8, size=9, split="test")).places == ()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = pixels(24, 3, 8, 8, seed=3)
    for place, image in enumerate(images):
        split = "train" if place < 12 else "val"
        folder = tmp_path / "root" / split / ("cat" if place % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:02d}.png")
    return tmp_path / "root"


def folders(root: Path) -> tuple[Folder, Folder]:
    options = Folder.Options.parse({"root": str(root)})
    return Folder.open(Folder.labeled(options, "train")), Folder.open(Folder.labeled(options, "eval"))


def test_other_files_are_no_overlap(root):
    assert find_overlap(*folders(root)).places == ()


@pytest.mark.parametrize("way", [os.symlink, os.link, shutil.copy])
def test_the_same_file_is_found_through_links_and_as_a_copy(root, way):
    way(root / "train" / "cat" / "03.png", root / "val" / "dog" / "zz.png")
    train, judged = folders(root)
    found = find_overlap(train, judged)
    assert [judged.name_of(place) for place in found.places] == ["dog/zz.png"]


def test_a_symlinked_folder_is_refused(root):
    shutil.move(root / "val", root / "kept")
    (root / "val").symlink_to(root / "train")
    with pytest.raises(UserError, match="12 of the 12 images to judge on are among the training images"):
        check_overlap(*folders(root))


def test_too_many_files_to_read_are_compared_by_identity_and_that_is_said(root, monkeypatch):
    shutil.copy(root / "train" / "cat" / "03.png", root / "val" / "dog" / "zz.png")
    (root / "val" / "dog" / "zy.png").symlink_to(root / "train" / "cat" / "05.png")
    monkeypatch.setattr("sslcli.evaluation.overlap.CONTENT_BYTES", 10)
    found = find_overlap(*folders(root))
    assert len(found.places) == 1
    assert found.compared == "the files, through links"


def test_what_cannot_be_compared_is_said(root):
    found = find_overlap(in_memory(8, "train"), folders(root)[1])
    assert found.compared.startswith("nothing")


def test_knn_does_not_search_the_points_that_it_predicts():
    """One of the bugs of older libraries: every image would find itself."""
    same = PlainSubject(clusters(30, 4), clusters(30, 4), 4)
    same.data["eval"] = same.data["train"]
    with pytest.raises(UserError, match="to fit on and to judge on are the same"):
        require_parts(same)
    with pytest.raises(UserError, match="are the same"):
        KNN(KNNOptions()).evaluate(same)
