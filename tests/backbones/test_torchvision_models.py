"""The provider `torchvision`: every classification model, ResNets with stem and width, and clear errors."""

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


def test_all_classification_models_are_listed_and_nothing_else() -> None:
    names = TorchvisionModels.names()
    assert set(names) == set(models.list_models(module=models))
    assert {"resnet50", "vgg16", "vit_l_16", "maxvit_t", "inception_v3", "mnasnet1_0"} <= set(names)
    assert not [name for name in names if "deeplab" in name or "rcnn" in name or "quantized" in name]


def test_provider_and_models_pass_the_conformance_checks() -> None:
    check_provider(TorchvisionModels)
    assert TorchvisionModels.get("vgg11") is TorchvisionModels.get("vgg11")
    check_backbone(TorchvisionModels.get("shufflenet_v2_x0_5"), image_size=64)
    check_backbone(TorchvisionModels.get("squeezenet1_1"), channels=(3,))


def test_its_resnets_are_the_built_in_ones_with_stem_and_width() -> None:
    assert load("backbones", "torchvision/resnet18") is ResNet18
    found = {name for name in TorchvisionModels.names() if "resne" in name}
    assert found == set(RESNETS)


@pytest.mark.parametrize("name", sorted(RESNETS))
def test_names_and_shapes_of_the_resnets_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = RESNETS[name](ResNetOptions()).export_state()[0]
        theirs = models.get_model(name, weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_a_grouped_resnet_takes_widths_that_its_groups_divide() -> None:
    kind = RESNETS["resnext50_32x4d"]
    assert kind.build(ResNetOptions(stem="small", width=16), 3, 8).spec.feature_dim == 512
    with pytest.raises(UserError, match=r"backbone\.width: resnext50_32x4d takes multiples of 16, not 8"):
        kind.build(ResNetOptions(width=8), 3, 32)


def test_a_model_for_one_image_size_refuses_others() -> None:
    cls = load("backbones", "torchvision/vit_b_32")
    with torch.device("meta"):
        backbone = cls.build(cls.Options(), 3, 64)
        assert (backbone.spec.minimum_size, backbone.spec.size_multiple) == (64, 32)
        with pytest.raises(UserError, match="was built for images of 64 pixels, not 32×32"):
            backbone(torch.empty(1, 3, 32, 32))
        with pytest.raises(UserError, match="in multiples of 32, not 50"):
            cls.build(cls.Options(), 3, 50)


def test_only_vits_have_a_patch_projection() -> None:
    """MoCo v3 freezes it, and uses its settings for ViTs if there is one."""
    vit, plain = (load("backbones", f"torchvision/{name}") for name in ("vit_b_32", "squeezenet1_1"))
    with torch.device("meta"):
        backbone = vit.build(vit.Options(), 3, 64)
        assert backbone.patch_projection is backbone.network.conv_proj
        assert plain.build(plain.Options(), 3, 32).patch_projection is None


def test_the_norm_before_a_classifier_is_kept() -> None:
    cls = load("backbones", "torchvision/convnext_tiny")
    with torch.device("meta"):
        state = cls.build(cls.Options(), 3, 32).export_state()[0]
    assert state["classifier.0.weight"].shape == (768,)
    assert "classifier.2.weight" not in state


def test_a_copy_of_mnasnet_loads_plain_tensors() -> None:
    cls = load("backbones", "torchvision/mnasnet0_5")
    backbone = cls.build(cls.Options(), 3, 32)
    copy.deepcopy(backbone).load_state_dict(dict(backbone.state_dict()), strict=True)


def test_ssl_list_shows_the_models_and_the_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    list_plugins("backbones", "torchvision", as_json=False, check=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"torchvision/{name}" for name in TorchvisionModels.names()]
    list_plugins("backbones", "torchvision", as_json=True, check=False)
    assert json.loads(capsys.readouterr().out)["members"] == lines
    list_plugins("backbones", "torchvision/vgg16", as_json=False, check=False)
    assert "pretrained: bool = false" in capsys.readouterr().out
