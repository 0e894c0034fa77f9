"""Depths of parameters: MAE's for vision transformers, stages for ResNets, a refusal for what has neither."""

from __future__ import annotations

from itertools import groupby

import pytest
from evaluation_helpers import TinyBackbone
from torch import nn

from sslcli.backbones.wrapped import wrap
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.evaluation.feature import FeatureBackbone
from sslcli.modules.depth import layer_multipliers, parameter_depths
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions
from sslcli.plugins import load


def build(name: str, size: int = 32, **options: object) -> Backbone:
    cls = load("backbones", name)
    return cls.build(cls.Options.parse(options), 3, size)


def depth_by_mae(name: str, last: int) -> int:
    """What `get_layer_id_for_vit` of MAE's util/lr_decay.py computes, in our words."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else last


def test_a_vit_has_maes_depths_and_factors() -> None:
    vit = build("vit_tiny", depth=3)
    depths = parameter_depths(vit)
    assert depths == {name: depth_by_mae(name, 4) for name, _ in vit.named_parameters()}
    assert {depths["pos_embed"], depths["cls_token"], depths["patch_embed.proj.weight"]} == {0}
    assert (depths["blocks.0.norm1.weight"], depths["blocks.2.mlp.fc2.bias"], depths["norm.weight"]) == (1, 3, 4)
    assert layer_multipliers(0.65, 3) == pytest.approx([0.65**4, 0.65**3, 0.65**2, 0.65, 1.0])


def test_fixed_positions_are_no_parameter_and_checkpointing_changes_nothing() -> None:
    plain = parameter_depths(build("vit_tiny", depth=2, positions="sincos"))
    assert "pos_embed" not in plain
    assert plain == parameter_depths(build("vit_tiny", depth=2, positions="sincos", gradient_checkpointing=True))


@pytest.mark.parametrize("name", ["resnet18", "ws_resnet18", "cifar_resnet20"])
def test_a_resnet_has_its_stem_first_and_then_its_stages(name: str) -> None:
    network = build(name)
    stages = 3 if name.startswith("cifar") else 4
    for parameter, depth in parameter_depths(network).items():
        stage = [part for part in parameter.split(".") if part.startswith("layer")]
        assert depth == (int(stage[0].removeprefix("layer")) if stage else 0)
    assert [depth for depth, _ in groupby(parameter_depths(network).values())] == list(range(stages + 1))


def test_torchvisions_vit_has_blocks_too() -> None:
    depths = parameter_depths(build("torchvision/vit_b_32"))
    assert {depth for name, depth in depths.items() if "encoder.layers" not in name} == {0, 13}
    assert depths["network.encoder.pos_embedding"] == depths["network.conv_proj.bias"] == 0
    assert depths["network.encoder.layers.encoder_layer_11.mlp.3.bias"] == 12
    assert depths["network.encoder.ln.weight"] == 13


def test_a_backbone_inside_another_keeps_its_depths() -> None:
    vit = build("vit_tiny", depth=2)
    own = list(parameter_depths(vit).values())
    assert list(parameter_depths(FeatureBackbone(vit, "tokens", 32)).values()) == own
    headed = parameter_depths(HeadedBackbone(vit, KeptLayersOptions(layers=1, hidden_dim=4)))
    assert list(headed.values())[: len(own)] == own
    assert set(list(headed.values())[len(own) :]) == {3}
    wrapped = wrap(vit, "python:Own")
    assert list(parameter_depths(wrapped.build(wrapped.Options(), 3, 32)).values()) == own


def test_a_network_without_layers_is_refused_in_one_line() -> None:
    other = wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), "python:Other")
    for backbone in (TinyBackbone(), other.build(other.Options(), 3, 8)):
        with pytest.raises(UserError, match=r"^layer_decay: this backbone has no layers to tell apart; [^\n]*$"):
            parameter_depths(backbone)
