"""ResNets: torchvision's bitwise where it has them, with a small stem and any width; weight-standardized; for CIFAR."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sslcli.backbones.cifar_resnet import CIFARResNet20, CIFARResNetOptions
from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.backbones.ws_resnet import EPS, StandardizedConv2d, WSResNet18, WSResNet50, WSResNetOptions
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.modules.roles import parameter_roles
from sslcli.plugins import load
from sslcli.testing import check_backbone

TINY = ResNetOptions(stem="small", width=4)
WS_TINY = WSResNetOptions(stem="small", width=8, norm_groups=4)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {"width": 4}, 37),
        ("resnet50", {"stem": "small", "width": 4}, 11),
        ("ws_resnet18", {"stem": "small", "width": 8, "norm_groups": 4}, 11),
        ("cifar_resnet20", {"width": 6}, 19),
    ],
    ids=str,
)
def test_families_pass_the_conformance_checks_at_sizes_that_are_not_multiples(
    name: str, options: dict[str, Any], size: int
) -> None:
    check_backbone(load("backbones", name), options, channels=(1, 3, 4), image_size=size)


@pytest.mark.parametrize(
    ("name", "features"),
    [(f"{kind}{depth}", 512 if depth < 50 else 2048) for kind in ("resnet", "ws_resnet") for depth in (18, 34, 50, 101)]
    + [("cifar_resnet20", 64), ("cifar_resnet56", 64)],
)
def test_docstring_and_class_name_are_those_of_the_size(name: str, features: int) -> None:
    cls = load("backbones", name)
    assert cls.name == name
    assert f"{features} features" in (cls.__doc__ or "")
    assert pickle.loads(pickle.dumps(cls)) is cls
    with torch.device("meta"):
        assert cls.build(cls.Options(), 3, 32).spec.feature_dim == features


@pytest.mark.parametrize(
    ("cls", "options", "least"),
    [
        (ResNet18, ResNetOptions(width=4, stem="standard"), 32),
        (ResNet18, ResNetOptions(width=4), 8),
        (ResNet18, TINY, 8),
        (CIFARResNet20, CIFARResNetOptions(width=4), 4),
    ],
)
def test_the_smallest_images_train_and_smaller_ones_are_refused(
    cls: type[Backbone], options: ResNetOptions, least: int
) -> None:
    backbone = cls.build(options, 3, least)
    assert backbone.spec.minimum_size == least
    backbone(torch.randn(2, 3, least, least)).pooled.sum().backward()
    with pytest.raises(UserError, match=f"resnet.*at least {least} pixels, not {least - 1}"):
        cls.build(options, 3, least - 1)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ResNet18, TINY),
        (WSResNet18, WS_TINY),
        (CIFARResNet20, CIFARResNetOptions(width=4)),
    ],
)
def test_zero_init_residual_starts_every_residual_branch_at_zero(cls: Any, options: Any) -> None:
    for zero in (True, False):
        backbone = cls(options.model_copy(update={"zero_init_residual": zero}))
        weights = [part.bn2.weight for part in backbone.modules() if hasattr(part, "bn2")]
        assert {bool(weight.any()) for weight in weights} == {not zero}
        assert len(weights) >= 8


def test_small_stem_keeps_the_image_size_and_the_standard_one_quarters_it() -> None:
    for stem, side in (("small", 32), ("standard", 8)):
        network = ResNet18(ResNetOptions(stem=stem, width=4)).network
        x = network.maxpool(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32))))
        assert x.shape == (1, 4, side, side)
    assert ResNet18(TINY).network.conv1.padding == (1, 1)  # a padding of 2 is a known bug of older code


def test_stem_is_initialized_like_torchvisions() -> None:
    torch.manual_seed(0)
    weight = ResNet18(ResNetOptions(width=64)).network.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 7 * 7)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("stem", "channels"), [("standard", 3), ("standard", 1), ("small", 3), ("small", 1)])
def test_exported_lines_build_torchvisions_model_with_the_same_features(stem: str, channels: int) -> None:
    backbone = ResNet18.build(ResNetOptions(stem=stem, zero_init_residual=False), channels, 32).eval()
    state, lines = backbone.export_state()
    scope: dict[str, Any] = {"state": state}
    exec(lines, scope)
    x = torch.randn(2, channels, 32, 32)
    assert torch.equal(scope["model"].eval()(x), backbone(x).pooled)


def test_other_widths_than_torchvisions_export_no_lines() -> None:
    state, lines = ResNet18(TINY).export_state()
    assert lines == ""
    assert "conv1.weight" in state


def test_channels_last_gives_the_same_features() -> None:
    backbone = ResNet18(TINY).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = backbone(x).pooled
    backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone(x.to(memory_format=torch.channels_last)).pooled, expected)


# --- weight standardization


def literal_standardization(weight: torch.Tensor) -> torch.Tensor:
    """The paper's formula, filter by filter and number by number."""
    result = torch.empty_like(weight)
    for o in range(weight.shape[0]):
        values = weight[o].reshape(-1).tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        standardized = [(value - mean) / (variance + EPS) ** 0.5 for value in values]
        result[o] = torch.tensor(standardized, dtype=weight.dtype).reshape(weight[o].shape)
    return result


def test_filters_are_standardized_over_their_inputs_and_pixels() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 5, 3, stride=2, padding=1).double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    weight = literal_standardization(conv.weight.detach())
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, weight, conv.bias, stride=2, padding=1))


def test_gradients_flow_through_mean_and_deviation() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(2, 2, 2, bias=False).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, conv.weight))


def test_a_filter_of_equal_weights_gives_zeros_and_not_nan() -> None:
    conv = StandardizedConv2d(1, 1, 3, bias=False)
    nn.init.ones_(conv.weight)
    assert torch.equal(conv(torch.randn(1, 1, 4, 4)), torch.zeros(1, 1, 2, 2))


def test_weights_are_standardized_in_float32_under_autocast() -> None:
    conv = StandardizedConv2d(4, 4, 3, bias=False)
    with torch.no_grad():
        conv.weight.mul_(1e-3).add_(10)  # in bfloat16 all of these would be the same number
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x), rtol=0.05, atol=0.1)


def test_every_convolution_is_standardized_and_every_norm_is_a_group_norm() -> None:
    modules = list(WSResNet50(WSResNetOptions(width=32)).modules())
    convolutions = [part for part in modules if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 53
    assert {type(part) for part in convolutions} == {StandardizedConv2d}
    norms = [part for part in modules if "Norm" in type(part).__name__]
    assert {(type(part), part.num_groups) for part in norms} == {(nn.GroupNorm, 32)}


def test_features_do_not_depend_on_the_batch_in_training() -> None:
    torch.manual_seed(0)
    backbone = WSResNet18(WS_TINY).train()
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(backbone(x).pooled[:1], backbone(x[:1]).pooled)


def test_names_and_shapes_are_those_of_the_resnet_without_running_statistics() -> None:
    theirs = ResNet18(ResNetOptions(stem="small", width=8)).export_state()[0]
    expected = {k: v.shape for k, v in theirs.items() if k.rpartition(".")[2] in ("weight", "bias")}
    state, lines = WSResNet18(WS_TINY).export_state()
    assert {key: value.shape for key, value in state.items()} == expected
    assert lines == ""


def test_a_width_that_the_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.width: ws_resnet18 .* 32 groups, and 48"):
        WSResNet18.build(WSResNetOptions(width=48), 3, 32)


def test_group_norms_have_the_role_norm_and_convolutions_weight() -> None:
    roles = parameter_roles(WSResNet18(WS_TINY))
    assert {role for name, role in roles.items() if "conv" in name or "downsample.0" in name} == {"weight"}
    assert {role for name, role in roles.items() if "bn" in name or "downsample.1" in name} == {"norm"}


# --- the ResNets for CIFAR


@pytest.mark.parametrize(("layers", "millions"), [(20, 0.27), (56, 0.85)])
def test_layers_and_parameters_are_the_papers(layers: int, millions: float) -> None:
    backbone = load("backbones", f"cifar_resnet{layers}")(CIFARResNetOptions())
    assert sum(isinstance(part, nn.Conv2d) for part in backbone.modules()) == layers - 1  # the last is the classifier
    # Table 6 counts the classifier of 10 classes.
    count = sum(parameter.numel() for parameter in backbone.parameters()) + 10 * 64 + 10
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_stages_have_16_32_and_64_channels_at_32_16_and_8_pixels() -> None:
    backbone = CIFARResNet20(CIFARResNetOptions())
    x = backbone.conv1(torch.zeros(1, 3, 32, 32))
    for stage, channels, side in ((backbone.layer1, 16, 32), (backbone.layer2, 32, 16), (backbone.layer3, 64, 8)):
        x = stage(x)
        assert x.shape == (1, channels, side, side)


def test_a_shortcut_takes_every_second_pixel_and_appends_channels_of_zeros() -> None:
    block = CIFARResNet20(CIFARResNetOptions(width=4)).layer2[0]
    x = torch.randn(2, 4, 6, 6)
    found = block.shortcut(x)
    assert found.shape == (2, 8, 3, 3)
    assert torch.equal(found[:, :4], x[:, :, ::2, ::2])
    assert not found[:, 4:].any()
