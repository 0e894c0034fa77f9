"""Frozen modules: a teacher from a file or by name, never trained, not in checkpoints, the same in a resumed run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import assert_same_end, newest
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import sslcli
from sslcli.backbones.vit import ViTOptions, ViTTiny
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.runs.backbone_file import save_backbone
from sslcli.runs.teacher import Teacher
from sslcli.runs.trained import load_trained
from sslcli.training.setup import build
from sslcli.training.train import train

DATA = DataInfo("test", 3, (16, 16), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture
def teacher(tiny: Any, tmp_path: Path) -> Path:
    """The backbone file of a tiny run."""
    train(tiny("training.epochs=1", "backbone.width=8", "seed=3"), tmp_path / "teacher")
    return tmp_path / "teacher" / "backbone.safetensors"


def distilling(teacher: Path | str, *more: str) -> list[str]:
    return [f"method={{name: distillation, teacher: {str(teacher)!r}, tokens: 1.0, queue_size: 16}}", *more]


def test_a_distilling_run_resumes_to_the_bit_evaluates_and_exports(tiny: Any, tmp_path: Path, teacher: Path) -> None:
    train(tiny(*distilling(teacher)), tmp_path / "whole")
    train(tiny(*distilling(teacher), "training.max_steps=5"), tmp_path / "parts")
    train(tiny(*distilling(teacher)), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert not [name for name in newest(tmp_path / "whole").tensors if "teacher" in name]
    assert newest(tmp_path / "whole").document["frozen"].keys() == {"teacher"}
    assert 0 <= sslcli.evaluate(tmp_path / "whole", "knn", {"k": [3]}).metrics["top1"] <= 1
    sslcli.export(tmp_path / "whole", "backbone", tmp_path / "net.safetensors")
    assert sslcli.load_backbone(tmp_path / "net.safetensors").spec.feature_dim == 32


def test_a_teacher_is_equal_to_the_bit_after_a_hundred_steps(tiny: Any, tmp_path: Path, teacher: Path) -> None:
    session = build(tiny(*distilling(teacher), "training.epochs=25"))
    module: Any = session.method.get_submodule("teacher")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    session.method.train()
    assert session.method.backbone.training
    assert not any(part.training for part in module.modules())
    for step in range(100):
        for micro_batch in next(session.source.batches(step)):
            images = session.normalize(micro_batch.images[0])
            module(images).pooled.sum()
            session.method.backbone(images).pooled.sum().backward()
        session.optimizer.step()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    trained = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert not any(id(parameter) in trained or parameter.requires_grad for parameter in module.parameters())


def test_another_teacher_is_refused_when_a_run_is_resumed(tiny: Any, tmp_path: Path, teacher: Path) -> None:
    train(tiny(*distilling(teacher), "training.max_steps=3"), tmp_path / "run")
    before = newest(tmp_path / "run").step
    other = tmp_path / "other"
    train(tiny("training.epochs=1", "backbone.width=8", "seed=4"), other)
    teacher.write_bytes((other / "backbone.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"was trained with another 'teacher': give the method the same one$"):
        train(tiny(*distilling(teacher)), tmp_path / "run", resume=True)
    assert newest(tmp_path / "run").step == before


def test_a_teacher_that_has_moved_is_the_same(tiny: Any, tmp_path: Path, teacher: Path) -> None:
    train(tiny(*distilling(teacher), "training.max_steps=3"), tmp_path / "run")
    moved = teacher.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match=r"^method\.teacher: .*backbone\.safetensors: no such run or file$"):
        train(tiny(*distilling(teacher)), tmp_path / "run", resume=True)
    train(tiny(*distilling(moved), "training.max_steps=4"), tmp_path / "run", resume=True)
    assert newest(tmp_path / "run").step == 4


def test_a_teachers_weights_may_move_too(tiny: Any, tmp_path: Path, teacher: Path) -> None:
    def with_weights(file: Path) -> list[str]:
        options = f"{{weights: {file}, width: 8, stem: small}}"
        return [f"method={{name: distillation, teacher: resnet18, teacher_options: {options}}}", "views=null"]

    weights = tmp_path / "weights.safetensors"
    save_file(load_trained(teacher).backbone.export_state()[0], weights)
    train(tiny(*with_weights(weights), "training.max_steps=3"), tmp_path / "run")
    moved = weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match=r"^method\.teacher: .*method\.teacher_options\.weights: .*no such file"):
        train(tiny(*with_weights(weights)), tmp_path / "run", resume=True)
    train(tiny(*with_weights(moved), "training.max_steps=4"), tmp_path / "run", resume=True)
    assert newest(tmp_path / "run").step == 4


def test_a_path_that_is_not_there_is_named_as_one() -> None:
    with pytest.raises(UserError, match=r"^teacher runs/gone: is no run or file here, and no name of a backbone"):
        Teacher("runs/gone", DATA, 16)


def test_a_teacher_gets_images_normalized_its_own_way(teacher: Path) -> None:
    built = Teacher(teacher, DATA, 16)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trained = load_trained(teacher)
    mean, std, own_mean, own_std = (
        torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std, trained.card.mean, trained.card.std)
    )
    with torch.no_grad():
        expected = trained.backbone((images - own_mean) / own_std).pooled
        torch.testing.assert_close(built((images - mean) / std).pooled, expected, rtol=1e-4, atol=1e-4)
    assert not built((images - mean) / std).pooled.requires_grad


@pytest.mark.parametrize("name", ["torchvision/resnet18", "resnet18"])
def test_a_named_teacher_has_its_published_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = models.resnet18(weights=None).eval()
    monkeypatch.setattr("sslcli.backbones.resnet.published_state", lambda name: dict(published.state_dict()))
    built = Teacher(name, DATA, 32)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std))
    imagenet = [torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    published.fc = nn.Identity()
    with torch.no_grad():
        expected = published((images - imagenet[0]) / imagenet[1])
        torch.testing.assert_close(built((images - mean) / std).pooled, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_other_images_is_one_line(teacher: Path, tmp_path: Path) -> None:
    gray = dataclasses.replace(DATA, channels=1)
    with pytest.raises(
        UserError, match=r"^teacher .*safetensors: takes images of 3 channels, and the data has 1: choose"
    ):
        Teacher(teacher, gray, 16)
    vit = ViTTiny.build(ViTOptions(depth=1, patch_size=4), 3, 16)
    card = dataclasses.replace(load_trained(teacher).card, backbone={"name": "vit_tiny", "depth": 1, "patch_size": 4},
                               feature_dim=192)  # fmt: skip
    save_backbone(tmp_path / "vit.safetensors", vit, card)
    assert Teacher(tmp_path / "vit.safetensors", DATA, 20)(torch.zeros(1, 3, 20, 20)).grid == (5, 5)
    with pytest.raises(
        UserError, match=r"vit.safetensors: cannot take images of 18 px; it takes 4 or more, in multiples"
    ):
        Teacher(tmp_path / "vit.safetensors", DATA, 18)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("gone.safetensors", {}, r"gone.safetensors: no such run or file"),
        ("vit_tiny", {}, r"teacher vit_tiny: has no published weights: give a file"),
        ("resnet18", {"widht": 3}, r"teacher resnet18: widht: "),
        (
            "vit_tiny",
            {"weights": "gone.pth", "patch_size": 5},
            r"teacher vit_tiny, for images of 32 px: backbone.patch",
        ),
    ],
)
def test_a_wrong_teacher_is_one_line(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Teacher(source, DATA, 32, options)
    assert "\n" not in str(caught.value)
