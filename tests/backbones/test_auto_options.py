"""`stem: auto` of the ResNets and `patch_size: auto` of the ViTs: by given weights, else by the size of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sslcli.config.document import Document, read_file
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.plugins import load
from sslcli.runs.checkpoint import list_checkpoints
from sslcli.runs.directory import RunDirectory
from sslcli.runs.files import read_document
from sslcli.training.train import train


def resolved(backbone: Any, size: int, *overrides: str) -> RunConfig:
    document = Document({"method": "simclr", "backbone": backbone, "data": {"name": "shapes", "size": size}})
    apply_overrides(document, list(overrides))
    return resolve(document)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/wide_resnet50_2", "ws_resnet18"])
@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "small"), (65, "standard"), (224, "standard")])
def test_small_images_get_the_small_stem(name: str, size: int, stem: str) -> None:
    kind = load("backbones", name)
    assert resolved(name, size).plain()["backbone"]["stem"] == stem
    if size < 65:
        network = kind.build(kind.Options(width=64), 3, size)
        assert isinstance(network.network.maxpool, nn.Identity)
        assert network.options.stem == "small"


@pytest.mark.parametrize(("size", "patch"), [(32, 4), (64, 4), (68, None), (72, 8), (128, 8), (144, 16), (224, 16)])
def test_small_images_get_small_patches(size: int, patch: int | None) -> None:
    kind = load("backbones", "vit_tiny")
    if patch is None:  # 68 is no multiple of 8
        with pytest.raises(Exception, match=r"patch_size: views of 68 pixels are not a multiple of 8"):
            resolved("vit_tiny", size)
        return
    assert resolved("vit_tiny", size).plain()["backbone"]["patch_size"] == patch
    options = kind.Options(depth=1)
    assert kind.describe(options, 3, size).patch_size == kind.build(options, 3, size).spec.patch_size == patch


def test_the_size_is_that_of_the_views() -> None:
    assert resolved("resnet18", 32, "views.size=96").backbone.options.stem == "standard"
    assert resolved("vit_tiny", 224, "views.size=64").backbone.options.patch_size == 4


@pytest.mark.parametrize(
    ("name", "written", "size", "found"),
    [
        ("resnet18", {"stem": "standard", "width": 4}, 32, {"stem": "standard"}),
        ("resnet18", {"stem": "small", "width": 4}, 96, {"stem": "small"}),
        ("vit_tiny", {"patch_size": 8, "depth": 1}, 32, {"patch_size": 8}),
    ],
)
def test_given_weights_decide(tmp_path: Path, name: str, written: dict[str, Any], size: int, found: Any) -> None:
    kind = load("backbones", name)
    other = {key: value for key, value in written.items() if key not in found}
    state = kind.build(kind.Options(**written), 3, size).export_state()[0]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    plain = resolved({"name": name, "weights": weights, **other}, size).plain()["backbone"]
    assert {key: plain[key] for key in found} == found
    fitted = kind.fit_options(kind.Options(**other), size, {key: torch.empty(v.shape) for key, v in state.items()})
    assert {key: fitted.plain()[key] for key in found} == found
    missing = resolved({"name": name, "weights": str(tmp_path / "gone.safetensors"), **other}, size)
    assert missing == resolved({"name": name, "weights": str(tmp_path / "gone.safetensors"), **other, **{
        key: {"stem": "small" if size <= 64 else "standard", "patch_size": 4}[key] for key in found
    }}, size)  # fmt: skip


def test_published_weights_have_the_standard_stem() -> None:
    assert resolved({"name": "resnet18", "pretrained": True}, 32).backbone.options.stem == "standard"


def test_what_is_set_stays() -> None:
    assert resolved({"name": "resnet18", "stem": "standard"}, 32).backbone.options.stem == "standard"
    assert resolved({"name": "vit_tiny", "patch_size": 16}, 32).backbone.options.patch_size == 16


OPEN = "backbone.stem=null"


def test_config_checkpoint_and_card_hold_what_it_came_to(tiny: Any, tmp_path: Path) -> None:
    train(tiny(OPEN, "training.epochs=1"), tmp_path / "run", tell=lambda line: None)
    directory = RunDirectory(tmp_path / "run")
    (checkpoint,) = list_checkpoints(directory.checkpoints)
    headers = [read_document(path) for path in (checkpoint, directory.backbone)]
    stored = [
        read_file(directory.config).data["backbone"],
        headers[0]["config"]["backbone"],
        headers[1]["card"]["backbone"],
    ]
    assert [each["stem"] for each in stored] == ["small"] * 3


def test_a_run_that_began_with_the_standard_stem_resumes_with_it(tiny: Any, tmp_path: Path) -> None:
    size = "data={name: shapes, count: 32, size: 32}"
    old = tiny("backbone.stem=standard", size, "training.max_steps=2")
    train(old, tmp_path / "run", tell=lambda line: None)
    train(tiny(OPEN, size, "training.max_steps=4"), tmp_path / "run", resume=True, tell=lambda line: None)
    assert read_file(tmp_path / "run" / "config.yaml").data["backbone"]["stem"] == "standard"
