"""The ResNets for CIFAR: 6n + 2 layers as in section 4.2 of the paper, and shortcuts without parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.backbones.cifar_resnet import CIFARResNet20, CIFARResNet56, CIFARResNetOptions
from sslcli.contracts.errors import UserError


@pytest.mark.parametrize(("kind", "layers", "millions"), [(CIFARResNet20, 20, 0.27), (CIFARResNet56, 56, 0.85)])
def test_layers_and_parameters_are_the_paper_s(kind: type[CIFARResNet20], layers: int, millions: float) -> None:
    backbone = kind(CIFARResNetOptions())
    assert sum(isinstance(part, nn.Conv2d) for part in backbone.modules()) == layers - 1  # the last is the classifier
    # Table 6 counts the classifier of 10 classes.
    count = sum(parameter.numel() for parameter in backbone.parameters()) + 10 * 64 + 10
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_the_stages_have_16_32_and_64_channels_at_32_16_and_8_pixels() -> None:
    backbone = CIFARResNet20(CIFARResNetOptions())
    x = backbone.conv1(torch.zeros(1, 3, 32, 32))
    for stage, channels, side in ((backbone.layer1, 16, 32), (backbone.layer2, 32, 16), (backbone.layer3, 64, 8)):
        x = stage(x)
        assert x.shape == (1, channels, side, side)


def test_the_first_convolution_keeps_the_size_and_is_not_padded_by_two() -> None:
    conv = CIFARResNet20(CIFARResNetOptions()).conv1
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))


def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros() -> None:
    block = CIFARResNet20(CIFARResNetOptions(width=4)).layer2[0]
    x = torch.randn(2, 4, 6, 6)
    found = block.shortcut(x)
    assert found.shape == (2, 8, 3, 3)
    assert torch.equal(found[:, :4], x[:, :, ::2, ::2])
    assert not found[:, 4:].any()


def test_zero_init_residual_leaves_the_shortcuts_alone_at_first() -> None:
    torch.manual_seed(0)
    backbone = CIFARResNet20(CIFARResNetOptions(width=4)).eval()
    x = torch.randn(2, 4, 8, 8).relu()
    assert torch.equal(backbone.layer1(x), x)
    plain = CIFARResNet20(CIFARResNetOptions(width=4, zero_init_residual=False)).eval()
    assert not torch.equal(plain.layer1(x), x)


def test_features_are_the_mean_over_the_last_map() -> None:
    backbone = CIFARResNet20.build(CIFARResNetOptions(width=6), 2, 19)
    assert backbone.spec.feature_dim == 24
    assert backbone(torch.randn(3, 2, 19, 19)).pooled.shape == (3, 24)


def test_images_below_four_pixels_are_refused_and_of_four_taken() -> None:
    backbone = CIFARResNet20.build(CIFARResNetOptions(width=4), 3, 4)
    assert torch.isfinite(backbone(torch.randn(2, 3, 4, 4)).pooled).all()
    with pytest.raises(UserError, match="cifar_resnet20 takes views of at least 4 pixels, not 3"):
        CIFARResNet20.build(CIFARResNetOptions(), 3, 3)


def test_a_mask_is_refused() -> None:
    with pytest.raises(UserError, match="no tokens to mask"):
        CIFARResNet20(CIFARResNetOptions())(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, dtype=torch.bool))
