"""The exporter `features`: rows, names and labels belong together, and memory does not grow with them."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from export_helpers import export, pasted, trained
from PIL import Image
from safetensors import safe_open

import sslcli
from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.evaluation.subject import FrozenSubject
from sslcli.exporters import features as module
from sslcli.exporters.features import FeaturesExporter
from sslcli.training.train import train

CPU = torch.device("cpu")


class Damaged(Dataset):
    """Images made when they are asked for, some of them unreadable."""

    def __init__(self, count, bad=(), labels=True, channels=3):
        super().__init__(DatasetOptions())
        self.count, self.bad = count, set(bad)
        self.labels = torch.arange(count) % 3 if labels else None
        self.info = DataInfo("damaged", channels, None, (0.5,) * 3, (0.2,) * 3, ("a", "b", "ç") if labels else None)

    def __len__(self):
        return self.count

    def image(self, index):
        if index in self.bad:
            raise UnreadableImage(f"{index}.png", "cut short")
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)

    def name_of(self, index):
        return f"a folder/bild ä {index}.png"


@pytest.fixture
def given(monkeypatch):
    """Returns a function that replaces the run's own dataset."""

    def give(dataset):
        monkeypatch.setattr(module, "open_images", lambda it, asked: dataset)
        return dataset

    return give


def expected(it, dataset):
    found = FrozenSubject(it, dataset, None, CPU, batch_size=5).features("train")
    return found.features, found.labels


@pytest.mark.parametrize(
    ("suffix", "bad", "labels"),
    [
        (".safetensors", (3, 120), True), (".npy", (3, 120), False),
        *(
            pytest.param(suffix, bad, labels, marks=pytest.mark.slow)
            for suffix, bad, labels in product((".safetensors", ".npy"), ((), (3, 120)), (True, False))
            if not bad or labels is (suffix == ".npy")
        ),
    ],
)  # fmt: skip
def test_rows_names_and_labels_belong_together(tmp_path, monkeypatch, given, suffix, bad, labels):
    it, dataset = trained(), given(Damaged(201, bad, labels))
    exported = export(FeaturesExporter, it, tmp_path / f"it's one{suffix}", batch_size=32)
    found = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)
    features, wanted_labels = expected(it, dataset)
    rows = found["features"] if suffix == ".safetensors" else torch.from_numpy(np.array(found["features"]))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, features, rtol=1e-5, atol=1e-5)
    kept = [index for index in range(201) if index not in bad]
    assert found["names"] == [dataset.name_of(index) for index in kept]
    if labels:
        assert torch.equal(torch.as_tensor(found["labels"]), wanted_labels)
    else:
        assert found.get("labels") is None
    index = found["file"]["index"].tolist() if suffix == ".safetensors" else found["about"]["index"]
    assert index == kept
    beside = {"it's one.json"} if suffix == ".npy" else set()
    assert {path.name for path in tmp_path.iterdir()} == {f"it's one{suffix}", "elsewhere", *beside}


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_every_tensor_is_aligned(tmp_path, given, count):
    """Behind an odd number of odd rows the integers would otherwise start at an odd address."""
    it = trained("cifar_resnet20", {"width": 1})
    it.card = dataclasses.replace(it.card, mean=(0.5,) * 3)
    given(Damaged(count))
    export(FeaturesExporter, it, tmp_path / "f.safetensors")
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        assert file.get_tensor("features").shape == (count, 4)
        assert file.get_tensor("index").tolist() == list(range(count))
        assert file.get_tensor("labels").tolist() == [index % 3 for index in range(count)]


def test_the_header_describes_the_features(tmp_path, given):
    given(Damaged(9))
    export(FeaturesExporter, trained(), tmp_path / "f.safetensors")
    export(FeaturesExporter, trained(), tmp_path / "f.npy")
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["a", "b", "ç"]
    assert (metadata["method"], metadata["backbone"]) == ("simclr", "resnet18")
    about = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert about["classes"] == ["a", "b", "ç"]
    assert about["data"] == {"name": "damaged", "split": "train", "limit": None, "mean": None, "std": None}
    assert about["backbone"]["step"] == "7"
    assert json.loads(metadata["sslcli"])["data"] == about["data"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_memory_does_not_grow_with_the_features(tmp_path, given, suffix):
    class Wide(torch.nn.Module):
        spec = dataclasses.replace(trained().backbone.spec, feature_dim=4096)

        def forward(self, x):
            from sslcli.contracts.backbone import Features

            return Features(x.mean(dim=(1, 2, 3))[:, None].expand(-1, 4096))

    it = trained()
    it.backbone, it.card = Wide(), dataclasses.replace(it.card, feature_dim=4096)
    given(Damaged(2000))
    tracemalloc.start()
    export(FeaturesExporter, it, tmp_path / f"f{suffix}", batch_size=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / f"f{suffix}").stat().st_size > 2000 * 4096 * 4
    assert peak < 8 * 2**20  # the features are 31 MiB


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_a_failure_half_way_leaves_no_file(tmp_path, given, suffix):
    given(Damaged(60, bad=(50, 51)))
    with pytest.raises(UserError, match=r"more than 1% of the 60 images"):
        export(FeaturesExporter, trained(), tmp_path / f"f{suffix}", batch_size=8)
    given(Damaged(3, channels=1))
    with pytest.raises(UserError, match="have 1 channels, but the backbone takes 3"):
        export(FeaturesExporter, trained(), tmp_path / f"f{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_refused(tmp_path, given):
    given(Damaged(9))
    it = trained()
    with torch.no_grad():
        it.backbone.network.bn1.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not all finite; the run diverged"):
        export(FeaturesExporter, it, tmp_path / "f.npy")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("f.bin", {}, r"should end in \.safetensors or \.npy"), ("f.bin", {"format": "npy"}, r"arrays end in \.npy"),
     ("f.npy", {"data": {"name": "shape"}}, "unknown dataset 'shape'; did you mean shapes"),
     ("f.npy", {"data": {"name": 3}}, "should be the name of a dataset"),
     ("f.npy", {"data": {"splitt": "x"}}, "data.splitt: unknown option of 'shapes'; did you mean split"),
     ("nowhere/f.npy", {"data": {"count": 8}}, "cannot be written")],
)  # fmt: skip
def test_wrong_options_are_one_line(tmp_path, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        export(FeaturesExporter, trained(), tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_data_are_the_run_s_own_unless_others_are_named(tiny, tmp_path):
    directory = train(tiny("training.max_steps=1"), tmp_path / "run").directory
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")

    def about(**data):
        path = tmp_path / "f.npy"
        sslcli.export(directory, "features", path, data=data)
        return json.loads(path.with_suffix(".json").read_text())

    own = about()
    assert (own["data"]["name"], own["data"]["split"], len(own["names"])) == ("shapes", "train", 32)
    assert about(split="test")["data"] == {**own["data"], "split": "test"}
    assert sorted(about(name="images", root=str(folder))["names"]) == ["0.png", "1.png", "2.png"]


def test_load_backbone_refuses_a_file_of_features(tmp_path, given):
    given(Damaged(5))
    for suffix in (".safetensors", ".npy"):
        export(FeaturesExporter, trained(), tmp_path / f"f{suffix}")
    with pytest.raises(UserError, match="holds features of images, not a network"):
        sslcli.load_backbone(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match=r"is an array, which numpy\.load loads"):
        sslcli.load_backbone(tmp_path / "f.npy")
