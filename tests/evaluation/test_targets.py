"""What can be evaluated besides a run: networks by name, untrained or with weights, and plain weight files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from sslcli.config.options import overrides_as_data
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Trained
from sslcli.data.normalization import IMAGENET
from sslcli.evaluation.parts import LabeledParts, pretrained_on
from sslcli.evaluation.seal import state_digest
from sslcli.evaluation.targets import find_target, load_network, read_shown
from sslcli.logs import lines_to
from sslcli.plugins import load
from sslcli.runs.backbone_file import save_backbone
from sslcli.testing.stand_ins import MEAN, STD, MemoryDataset, small_trained

NARROW = ["backbone.stem=small", "backbone.width=4"]


def parts(size: int = 16) -> LabeledParts:
    return LabeledParts(MemoryDataset("train", size=size), MemoryDataset("test", size=size), True, size, {})


def network(word: str, *overrides: str, seed: int = 0, size: int = 16) -> tuple[Trained, list[str]]:
    document, target = overrides_as_data(list(overrides)), find_target(word)
    lines: list[str] = []
    shown = read_shown(document, [target])
    with lines_to(lines.append):
        return load_network(target, document, shown, parts(size), seed=seed), lines


def test_a_name_is_an_untrained_network_with_the_datas_own_normalization():
    found, lines = network("resnet18", *NARROW)
    assert (found.card.method, found.card.mean, found.card.std) == ("untrained", (MEAN,) * 3, (STD,) * 3)
    assert (found.card.image_size, found.card.feature_dim, found.run) == (16, 32, None)
    assert not found.backbone.training
    found, _ = network("resnet18", *NARROW, "mean=[0.1, 0.2, 0.3]", "std=[0.4, 0.5, 0.6]", "image_size=24")
    assert (found.card.mean, found.card.std, found.card.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 24)
    found, _ = network("torchvision/squeezenet1_1", size=32)
    assert found.card.backbone["name"] == "torchvision/squeezenet1_1"
    assert lines == ["resnet18: untrained, images of 16 pixels, mean 0.5/0.5/0.5, std 0.25/0.25/0.25"]


def test_untrained_weights_follow_the_seed_and_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    same = [state_digest(network("resnet18", *NARROW)[0].backbone) for _ in range(2)]
    assert same[0] == same[1] != state_digest(network("resnet18", *NARROW, seed=1)[0].backbone)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return models.resnet18().state_dict()


@pytest.mark.parametrize("form", ["plain.pth", "nested.tar", "wrapped.pt", "plain.safetensors", "wrapped.safetensors"])
def test_a_plain_weight_file_of_torchvision_is_loaded_into_the_network_that_is_named(tmp_path, state, form):
    path = tmp_path / form
    named = {f"module.{key}": value for key, value in state.items()} if form.startswith("wrapped") else state
    if form.endswith("safetensors"):
        save_file({key: value.contiguous() for key, value in named.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": named} if form.startswith("nested") else named, path)
    found, lines = network(str(path), "backbone=resnet18", size=32)
    assert torch.equal(found.backbone.network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert (found.card.mean, found.card.std) == IMAGENET[3]
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "without the classifier" in lines[0]
    assert "image_size=224" in lines[1]
    images = torch.randn(2, 3, 32, 32)
    reference = models.resnet18()
    reference.load_state_dict(state)
    reference.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(found.backbone(images).pooled, reference.eval()(images))


@pytest.mark.parametrize(("size", "stem"), [(96, "small"), (32, "standard")])
def test_the_stem_is_that_of_the_weights_whatever_the_images(tmp_path, size, stem):
    kind = load("backbones", "resnet18")
    save_file(kind.build(kind.Options(width=4, stem=stem), 3, 64).export_state()[0], tmp_path / "w.safetensors")
    found, _ = network(str(tmp_path / "w.safetensors"), "backbone=resnet18", "backbone.width=4", size=size)
    assert found.card.backbone["stem"] == found.backbone.options.stem == stem
    assert network("resnet18", "backbone.width=4", size=32)[0].card.backbone["stem"] == "small"


def test_published_weights_get_imagenets_normalization(monkeypatch, state):
    monkeypatch.setattr(load("backbones", "resnet18"), "published_state", lambda self: state)
    found, _ = network("resnet18", "backbone.pretrained=true", size=32)
    assert (found.card.method, found.card.mean) == ("published weights", IMAGENET[3][0])
    assert torch.equal(found.backbone.network.conv1.weight, state["conv1.weight"])


def test_weights_of_a_run_have_their_own_normalization(tmp_path):
    given = small_trained()
    save_backbone(tmp_path / "b.safetensors", given.backbone, given.card)
    assert find_target(tmp_path / "b.safetensors").kind == "trained"
    found, _ = network("resnet18", *NARROW, f"backbone.weights={tmp_path / 'b.safetensors'}")
    assert (found.card.mean, found.card.std) == (given.card.mean, given.card.std)
    assert torch.equal(found.backbone.network.conv1.weight, given.backbone.network.conv1.weight)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.fixture(scope="module")
def files(tmp_path_factory, state):
    """A folder with files of weights, of other things, and of nothing."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(state, folder / "w.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save(Evil(), folder / "evil.pth")
    (folder / "empty.pth").touch()
    (folder / "cut.safetensors").write_bytes(b"cut")
    given = small_trained()
    save_backbone(folder / "b.safetensors", given.backbone, given.card)
    return folder


@pytest.mark.parametrize(
    ("word", "overrides", "said"),
    [
        ("w.pth", [], "w.pth: holds weights but not the name of their network; add backbone=NAME"),
        ("w.pth", ["backbone=resnet34"], "w.pth: has no 'layer1.2"),
        ("w.pth", ["backbone=resnet18", "backbone.pretrained=true"], "w.pth: the weights come from this file"),
        ("evil.pth", ["backbone=resnet18"], "evil.pth: cannot be read as weights alone"),
        ("list.pth", ["backbone=resnet18"], "list.pth: holds no named weights"),
        ("empty.pth", ["backbone=resnet18"], "empty.pth: is damaged or not a safetensors file"),
        ("cut.safetensors", ["backbone=resnet18"], "cut.safetensors: is damaged or not a safetensors file"),
        ("resnet18", ["mean=[0.5]"], "command line: mean: should have 3 numbers"),
        ("resnet18", ["std=[0.2, 0, 0.2]"], "command line: std: should be numbers above 0"),
        ("resnet18", ["backbone.widht=4"], "command line: backbone.widht: unknown option"),
        ("resnet18", ["feature=token"], "command line: feature: should be pooled, tokens, cls_mean, or cls_lastN"),
        ("resnet18", ["feature=cls_lastN"], "command line: feature: should be pooled, tokens, cls_mean, or cls_lastN"),
        ("resnet18", ["interpolation=cubic"], "command line: interpolation: should be 'bilinear' or 'bicubic', not"),
        ("resnet81", [], "resnet81: no such run or file; unknown backbone 'resnet81'; did you mean resnet"),
        ("runs/none", [], "runs/none: no such run or file; `ssl list backbones`"),
        ("b.safetensors", ["mean=[0.1, 0.2, 0.3]"], "command line: mean: b.safetensors has its own"),
        ("b.safetensors", ["backbone.width=4"], "command line: backbone: b.safetensors has its own"),
    ],
)
def test_a_wrong_target_is_one_line(monkeypatch, files, word, overrides, said):
    monkeypatch.chdir(files)
    with pytest.raises(UserError) as caught:
        network(word, *overrides, size=32)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


def test_a_folder_with_the_name_of_a_network_is_a_run_only_if_it_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet18").mkdir()
    assert find_target("resnet18").kind == "name"
    Path("resnet18/config.yaml").write_text("")
    assert find_target("resnet18").kind == "trained"


def test_a_run_on_the_test_images_is_recognized_by_its_options():
    cls = load("datasets", "shapes")
    test = cls.open(cls.labeled(cls.Options.parse({"count": 20, "size": 16}), "eval"))
    stored = {"name": "shapes", **test.options.plain()}
    assert pretrained_on(stored, test)
    for other in ({**stored, "split": "train"}, {"name": "shapes"}, {"name": "uninstalled", "size": 3}, None):
        assert not pretrained_on(other, test)
