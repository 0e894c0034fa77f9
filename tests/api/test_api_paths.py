"""A list of paths as data: read like the files of a folder, in the given order, with labels if there are some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_helpers import Arrays, Net, states_equal, tiny_run
from PIL import Image

import sslcli
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.decode import decode
from sslcli.data.objects.given import Given
from sslcli.data.objects.listed import ImageFiles, as_dataset
from sslcli.data.objects.wrapped import WrappedOptions, wrap_datasets


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """40 files of three heights, of the classes of `Arrays`."""
    data, folder = Arrays(40), tmp_path / "photos"
    folder.mkdir()
    for index in range(40):
        pixels = data.pixels[index][: 16 - index % 3]
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return sorted(folder.glob("*.png"))


def opened(files: Any, **options: Any) -> Any:
    return wrap_datasets({"train": Given(as_dataset(files), "python:ImageFiles")}).open(WrappedOptions.parse(options))


def test_a_list_of_paths_trains_like_the_folder_they_are_in(photos, tmp_path) -> None:
    same = {"backbone": Net(), "views": {"size": 16}, "training": {"workers": 0}}
    folder = tiny_run(tmp_path / "folder", data=photos[0].parent, **same)
    assert (folder.config["data"]["name"], folder.config["data"]["root"]) == ("images", str(photos[0].parent))
    listed = tiny_run(tmp_path / "listed", data=[photos[0], *map(str, photos[1:])], **same)
    assert states_equal(listed.backbone(), folder.backbone())
    stored = listed.config["data"]
    assert (stored["name"], stored["count"], stored["files"]) == ("python:ImageFiles", 40, ImageFiles(photos).digest)
    assert listed.card.dataset == "python:ImageFiles"


def test_a_run_is_resumed_exactly_and_only_with_the_same_files_in_their_order(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(photos[0].parent)
    names, same = [path.name for path in photos], {"backbone": Net(), "views": {"size": 16}, "data": photos}
    whole = tiny_run(tmp_path / "whole", **same, training={"workers": 2})
    part = {**same, "data": names}  # other paths of the same files
    tiny_run(tmp_path / "parts", **part, training={"workers": 2, "max_steps": 3})
    resumed = tiny_run(tmp_path / "parts", **part, training={"workers": 2}, resume=True)
    assert states_equal(resumed.backbone(), whole.backbone())
    with pytest.raises(UserError, match=r"data\.files: '\w{12}' in the run, '\w{12}' now"):
        tiny_run(tmp_path / "parts", **{**same, "data": names[::-1]}, resume=True)


def test_files_that_cannot_be_read_are_replaced_counted_and_named(photos, tmp_path, capsys) -> None:
    photos[13].write_bytes(b"")
    same = {"views": {"size": 16}, "training": {"workers": 0}}
    run = tiny_run(tmp_path / "run", data={"name": photos, "max_unreadable": 0.05}, **same)
    lines = [line for line in capsys.readouterr().err.splitlines() if "unreadable image" in line]
    assert lines == [f"warning: unreadable image replaced: {photos[13]}: the file is empty"]
    assert run.metrics[-1]["unreadable_images"] == 1
    with pytest.raises(SslError, match=r"1 of 40 images cannot be read"):
        tiny_run(tmp_path / "strict", data={"name": photos, "max_unreadable": 0.0}, **same)
    with pytest.raises(UserError, match=r"data: python:ImageFiles\[0\]: /.*nowhere\.jpg: No such file") as caught:
        tiny_run(tmp_path / "missing", data=["nowhere.jpg"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^data: generator cannot be indexed: write list\(…\)"):
        tiny_run(tmp_path / "generator", data=(path for path in photos))


def test_pixels_names_and_paths_are_those_of_the_files(photos) -> None:
    data = opened(photos)
    assert torch.equal(data.image(7), decode(photos[7]))
    assert torch.equal(data.image_for(7, 4), decode(photos[7], 3, 4))
    assert (data.name_of(7), data.path_of(7), data.labels) == (str(photos[7]), photos[7], None)
    gray = opened(photos, channels=1)
    assert torch.equal(gray.image(7), decode(photos[7], 1))


def test_a_tilde_is_expanded_and_pairs_have_labels(photos, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(photos[0].parent))
    data = opened([("~/00.png", "cat"), (photos[1], "ant")])
    assert torch.equal(data.image(0), decode(photos[0]))
    assert (data.info.classes, data.labels.tolist()) == (("ant", "cat"), [1, 0])
    assert not isinstance(as_dataset([np.zeros((4, 4), np.uint8)]), ImageFiles)
    assert not isinstance(as_dataset([(np.zeros((4, 4), np.uint8), "a.png")]), ImageFiles)


def test_evaluations_and_exported_features_take_lists_of_paths(photos, tmp_path) -> None:
    run = tiny_run(tmp_path / "run", training={"max_steps": 1})
    pairs = [(path, int(label)) for path, label in zip(photos, Arrays(40).labels_of, strict=True)]
    result = run.evaluate("knn", train=pairs[:30], eval=pairs[30:], k=[3])
    assert (result.protocol["train"]["images"], result.protocol["eval"]["images"]) == (30, 10)
    with pytest.raises(UserError, match="of the 40 test images are among the training images"):
        run.evaluate("knn", train=pairs[:30], eval=list(pairs), k=[3])
    exported = run.export("features", tmp_path / "some.npy", data=photos[:5])
    about = json.loads((tmp_path / "some.json").read_text())
    assert about["names"] == [str(path) for path in photos[:5]]
    assert np.load(exported.path).shape == (5, 6)
    also = run.export("features", tmp_path / "limited.npy", data={"name": photos, "limit": 3})
    assert np.load(also.path).shape == (3, 6)
    assert sslcli.evaluate(run, "knn", {"k": [3]}, train=pairs[:30], eval=pairs[30:]).metrics == result.metrics
