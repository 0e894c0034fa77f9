"""ResNets: torchvision's to the bit where torchvision has them, with a small stem, any width and any channels."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from sslcli.backbones.resnet import ResNet18, ResNet34, ResNet50, ResNetOptions
from sslcli.contracts.errors import UserError

TINY = ResNetOptions(stem="small", width=4)


@pytest.mark.parametrize(("kind", "name"), [(ResNet18, "resnet18"), (ResNet34, "resnet34"), (ResNet50, "resnet50")])
def test_names_and_shapes_are_torchvision_s(kind: type[ResNet18], name: str) -> None:
    with torch.device("meta"):
        ours = kind(ResNetOptions()).network.state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


@pytest.mark.parametrize(("kind", "expansion"), [(ResNet18, 1), (ResNet34, 1), (ResNet50, 4)])
@pytest.mark.parametrize("width", [4, 6])
def test_the_feature_dimension_is_that_of_the_features(kind: type[ResNet18], expansion: int, width: int) -> None:
    backbone = kind.build(ResNetOptions(stem="small", width=width), 3, 8)
    assert backbone.spec.feature_dim == 8 * width * expansion
    assert backbone.eval()(torch.zeros(2, 3, 8, 8)).pooled.shape == (2, backbone.spec.feature_dim)


def test_the_small_stem_keeps_the_size_of_the_image_and_the_standard_one_quarters_it() -> None:
    for stem, side in (("small", 32), ("standard", 8)):
        network = ResNet18(ResNetOptions(stem=stem, width=4)).network
        x = network.maxpool(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32))))
        assert x.shape == (1, 4, side, side)
    assert ResNet18(TINY).network.conv1.padding == (1, 1)  # a padding of 2 is a known bug of older code


@pytest.mark.parametrize("stem", ["small", "standard"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels_and_a_size_that_is_no_multiple_are_taken(stem: str, channels: int) -> None:
    backbone = ResNet18.build(ResNetOptions(stem=stem, width=4), channels, 37)
    assert backbone.spec.channels == channels
    assert torch.isfinite(backbone(torch.randn(2, channels, 37, 37)).pooled).all()


@pytest.mark.parametrize(("stem", "least"), [("standard", 32), ("small", 8)])
def test_images_below_the_minimum_are_refused_and_at_it_taken(stem: str, least: int) -> None:
    options = ResNetOptions(stem=stem, width=4)
    backbone = ResNet18.build(options, 3, least)
    assert backbone.spec.minimum_size == least
    backbone(torch.randn(2, 3, least, least)).pooled.sum().backward()
    with pytest.raises(UserError, match=f"resnet18.*at least {least} pixels, not {least - 1}"):
        ResNet18.build(options, 3, least - 1)


def test_zero_init_residual_starts_every_block_as_the_identity() -> None:
    def last_norms(zero: bool) -> set[float]:
        network = ResNet18(ResNetOptions(stem="small", width=4, zero_init_residual=zero)).network
        return {m.bn2.weight.sum().item() for m in network.modules() if hasattr(m, "bn2")}

    assert last_norms(True) == {0.0}
    assert 0.0 not in last_norms(False)


def test_the_stem_is_initialized_like_torchvision_s() -> None:
    torch.manual_seed(0)
    weight = ResNet18(ResNetOptions(width=64)).network.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 7 * 7)) ** 0.5, rel=0.05)


def test_weights_come_from_the_global_generator() -> None:
    def state() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return ResNet18(TINY).state_dict()

    first, second = state(), state()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("stem", "channels"), [("standard", 3), ("standard", 1), ("small", 3), ("small", 1)])
def test_the_exported_lines_build_torchvision_s_model_with_the_same_features(stem: str, channels: int) -> None:
    backbone = ResNet18.build(ResNetOptions(stem=stem, zero_init_residual=False), channels, 32).eval()
    state, lines = backbone.export_state()
    scope: dict[str, object] = {"state": state}
    exec(lines, scope)
    model = scope["model"]
    assert isinstance(model, nn.Module)
    x = torch.randn(2, channels, 32, 32)
    torch.testing.assert_close(model.eval()(x), backbone(x).pooled, rtol=0, atol=0)


def test_a_width_that_torchvision_has_no_class_for_exports_no_lines() -> None:
    state, lines = ResNet18(TINY).export_state()
    assert lines == ""
    assert "conv1.weight" in state


def test_import_state_takes_back_what_was_exported_and_nothing_else() -> None:
    first, second = ResNet18(TINY).eval(), ResNet18(TINY).eval()
    state, _ = first.export_state()
    second.import_state(state)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(first(x).pooled, second(x).pooled)
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        second.import_state({name: value for name, value in state.items() if name != "conv1.weight"})


def test_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match="no tokens to mask"):
        ResNet18(TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, dtype=torch.bool))


def test_channels_last_gives_the_same_features() -> None:
    backbone = ResNet18(TINY).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = backbone(x).pooled
    backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone(x.to(memory_format=torch.channels_last)).pooled, expected)
