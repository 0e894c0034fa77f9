"""Weight-standardized ResNets: standardized filters, group norm, and features that know nothing of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.backbones.ws_resnet import EPS, StandardizedConv2d, WSResNet18, WSResNet50, WSResNetOptions
from sslcli.contracts.errors import UserError
from sslcli.modules.roles import parameter_roles

TINY = WSResNetOptions(stem="small", width=8, norm_groups=4)


def reference(weight: torch.Tensor) -> torch.Tensor:
    """The paper's formula, filter by filter and number by number."""
    result = torch.empty_like(weight)
    for o in range(weight.shape[0]):
        values = weight[o].reshape(-1).tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        standardized = [(value - mean) / (variance + EPS) ** 0.5 for value in values]
        result[o] = torch.tensor(standardized, dtype=weight.dtype).reshape(weight[o].shape)
    return result


def test_a_filter_is_standardized_over_its_inputs_and_pixels() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 5, 3, stride=2, padding=1).double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    expected = nn.functional.conv2d(x, reference(conv.weight.detach()), conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_gradients_go_through_mean_and_deviation() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(2, 2, 2, bias=False).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, conv.weight))


def test_shifting_and_scaling_a_filter_changes_nothing() -> None:
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 4, 3).double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.mul_(10)
        expected = conv(x)
        conv.weight.mul_(100).add_(7)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_a_filter_of_equal_weights_is_zero_and_not_nan() -> None:
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


def test_every_convolution_is_standardized_and_every_norm_a_group_norm() -> None:
    backbone = WSResNet50(WSResNetOptions(width=32))
    convolutions = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 53
    assert {type(part) for part in convolutions} == {StandardizedConv2d}
    norms = {type(part) for part in backbone.modules() if "Norm" in type(part).__name__}
    assert norms == {nn.GroupNorm}
    assert {part.num_groups for part in backbone.modules() if isinstance(part, nn.GroupNorm)} == {32}


def test_an_image_s_features_do_not_depend_on_its_batch_while_training() -> None:
    torch.manual_seed(0)
    backbone = WSResNet18(TINY).train()
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(backbone(x).pooled[:1], backbone(x[:1]).pooled)


def test_names_and_shapes_are_those_of_the_resnet_without_running_statistics() -> None:
    theirs = ResNet18(ResNetOptions(stem="small", width=8)).export_state()[0]
    expected = {k: v.shape for k, v in theirs.items() if k.rpartition(".")[2] in ("weight", "bias")}
    state, lines = WSResNet18(TINY).export_state()
    assert {key: value.shape for key, value in state.items()} == expected
    assert lines == ""


def test_zero_init_residual_starts_every_branch_as_zero() -> None:
    for zero, expected in ((True, {0.0}), (False, {8.0, 16.0, 32.0, 64.0})):
        backbone = WSResNet18(TINY.model_copy(update={"zero_init_residual": zero}))
        assert {part.bn2.weight.sum().item() for part in backbone.modules() if hasattr(part, "bn2")} == expected


def test_a_width_that_the_groups_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.width: ws_resnet18 .* 32 groups, and 48"):
        WSResNet18.build(WSResNetOptions(width=48), 3, 32)


def test_norms_are_norms_and_convolutions_weights() -> None:
    roles = parameter_roles(WSResNet18(TINY))
    assert {role for name, role in roles.items() if "conv" in name or "downsample.0" in name} == {"weight"}
    assert {role for name, role in roles.items() if "bn" in name or "downsample.1" in name} == {"norm"}
