"""The provider `torchvision`: every classification model, ResNets with stem and width, clear words where one is odd."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torchvision import models

from sslcli.backbones.resnet import RESNETS, ResNet18, ResNetOptions
from sslcli.backbones.torchvision import TorchvisionModels
from sslcli.cli.listing import list_plugins
from sslcli.contracts.errors import UserError
from sslcli.plugins import load
from sslcli.testing import check_backbone, check_provider


def test_all_classification_models_are_there_and_nothing_else() -> None:
    names = TorchvisionModels.names()
    assert set(names) == set(models.list_models(module=models))
    assert {"resnet50", "vgg16", "vit_l_16", "maxvit_t", "inception_v3", "mnasnet1_0"} <= set(names)
    assert not [name for name in names if "deeplab" in name or "rcnn" in name or "quantized" in name]


def test_it_keeps_a_provider_s_promises() -> None:
    check_provider(TorchvisionModels)
    assert TorchvisionModels.get("vgg11") is TorchvisionModels.get("vgg11")


def test_a_plain_model_keeps_a_backbone_s_promises() -> None:
    check_backbone(TorchvisionModels.get("shufflenet_v2_x0_5"), image_size=64)


def test_its_resnets_are_the_bare_ones_with_stem_and_width() -> None:
    assert load("backbones", "torchvision/resnet18") is ResNet18
    found = {name for name in TorchvisionModels.names() if "resne" in name}
    assert found == set(RESNETS)


@pytest.mark.parametrize("name", sorted(RESNETS))
def test_names_and_shapes_of_the_resnets_are_torchvision_s(name: str) -> None:
    with torch.device("meta"):
        ours = RESNETS[name](ResNetOptions()).export_state()[0]
        theirs = models.get_model(name, weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_a_grouped_resnet_takes_widths_that_its_groups_can_share() -> None:
    kind = RESNETS["resnext50_32x4d"]
    assert kind.build(ResNetOptions(stem="small", width=16), 3, 8).spec.feature_dim == 512
    with pytest.raises(UserError, match=r"backbone\.width: resnext50_32x4d takes multiples of 16, not 8"):
        kind.build(ResNetOptions(width=8), 3, 32)


def test_a_model_of_one_size_says_so_when_it_is_shown_another() -> None:
    cls = load("backbones", "torchvision/vit_b_32")
    with torch.device("meta"):
        backbone = cls.build(cls.Options(), 3, 64)
        assert (backbone.spec.minimum_size, backbone.spec.size_multiple) == (64, 32)
        with pytest.raises(UserError, match="images of one size, 64 pixels here, not 32×32"):
            backbone(torch.empty(1, 3, 32, 32))
        with pytest.raises(UserError, match="in multiples of 32, not 50"):
            cls.build(cls.Options(), 3, 50)


def test_the_patch_projection_of_a_vit_is_known_and_others_have_none() -> None:
    """MoCo v3 freezes it, and takes its settings for ViTs where there is one."""
    vit, plain = (load("backbones", f"torchvision/{name}") for name in ("vit_b_32", "squeezenet1_1"))
    with torch.device("meta"):
        backbone = vit.build(vit.Options(), 3, 64)
        assert backbone.patch_projection is backbone.network.conv_proj
        assert plain.build(plain.Options(), 3, 32).patch_projection is None


def test_a_mask_is_refused() -> None:
    cls = load("backbones", "torchvision/squeezenet1_1")
    with pytest.raises(UserError, match="no tokens to mask"):
        cls.build(cls.Options(), 3, 32)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, dtype=torch.bool))


def test_the_norm_before_a_classifier_stays_and_its_dropout_goes() -> None:
    cls = load("backbones", "torchvision/convnext_tiny")
    with torch.device("meta"):
        state = cls.build(cls.Options(), 3, 32).export_state()[0]
    assert state["classifier.0.weight"].shape == (768,)
    assert "classifier.2.weight" not in state


def test_mnasnet_loads_plain_tensors_also_as_a_copy() -> None:
    cls = load("backbones", "torchvision/mnasnet0_5")
    backbone = cls.build(cls.Options(), 3, 32)
    copy.deepcopy(backbone).load_state_dict(dict(backbone.state_dict()), strict=True)


def test_the_list_shows_what_a_provider_has_and_the_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    list_plugins("backbones", "torchvision", as_json=False, check=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"torchvision/{name}" for name in TorchvisionModels.names()]
    list_plugins("backbones", "torchvision", as_json=True, check=False)
    assert json.loads(capsys.readouterr().out)["members"] == lines
    list_plugins("backbones", "torchvision/vgg16", as_json=False, check=False)
    assert "pretrained: bool = false" in capsys.readouterr().out
