"""Maps of features: which networks have them, and their resizing as torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.contracts.backbone import Features
from sslcli.contracts.errors import UserError
from sslcli.modules.maps import map_of, map_width, resize_map
from sslcli.testing.stand_ins import SmallBackbone

SIZES = [((14, 14), (6, 9)), ((4, 3), (9, 9)), ((1, 1), (3, 2)), ((5, 7), (1, 1))]


class Without(SmallBackbone):
    """A network that pools its map away."""

    def forward(self, x: Tensor, *arguments: Any, **more: Any) -> Features:
        return Features(super().forward(x).pooled)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "mean"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_a_map_is_resized_as_torch_does(mode: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    x = torch.randn(2, *before, 3, dtype=torch.float64, requires_grad=True)
    images = x.permute(0, 3, 1, 2)
    if mode == "mean":
        expected = F.adaptive_avg_pool2d(images, after)
    else:
        expected = F.interpolate(images, size=after, mode=mode, align_corners=False)
    expected, found = expected.permute(0, 2, 3, 1), resize_map(x, after, mode)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad((expected**2).sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((found**2).sum(), x)[0], gradient)


def test_a_map_of_that_size_stays_what_it_is() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert resize_map(x, (3, 4), "bilinear") is x


def test_the_width_is_found_without_changing_the_network() -> None:
    backbone = ResNet18(ResNetOptions(width=4))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert map_width(backbone, 64, "backbone: this") == 32
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert map_of(backbone(torch.randn(2, 3, 64, 96))).shape == (2, 2, 3, 32)


def test_a_network_without_a_map_is_refused() -> None:
    with pytest.raises(UserError, match=r"^backbone: that needs a map of features, which this network does not have: "):
        map_width(Without(3, 16), 16, "backbone: that")
