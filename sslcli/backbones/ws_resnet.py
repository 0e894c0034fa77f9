"""ResNets whose features don't depend on the batch: group norm, and convolutions with standardized weights.

Qiao, Wang, Liu, Shen, Yuille, *Micro-Batch Training with Batch-Channel Normalization and Weight Standardization*,
https://arxiv.org/abs/1903.10520; group norm: Wu, He, https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.errors import UserError

from .residual import NormLayer, ResidualNetwork
from .resnet import DEPTHS, ResidualBackbone, ResidualOptions

#: Added to the variance of the weights.
EPS = 1e-5


class WSResNetOptions(ResidualOptions):
    """Options of a ResNet with group norm and weight standardization."""

    norm_groups: int = Field(default=32, ge=1)
    """Groups of each group norm; `width` must be a multiple of it."""


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters are each standardized to mean 0 and variance 1 before use: Ŵ = (W − μ)/√(σ² + ε).

    μ and σ² (biased) are taken over a filter's inputs and pixels, in float32 even under autocast; the gradient flows
    through them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C′, H′, W′)."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) * torch.rsqrt(variance + EPS), self.bias)


class WSResNet(ResidualBackbone):
    """A ResNet with group norm and weight standardization."""

    Options = WSResNetOptions
    name = "ws_resnet"
    about = " with group norm and weight standardization"

    @classmethod
    def describe(cls, options: Any, channels: int, image_size: int) -> BackboneSpec:
        if options.width % options.norm_groups:
            raise UserError(
                f"backbone.width: {cls.name} normalizes in {options.norm_groups} groups, and {options.width} is not a "
                "multiple of that: change width or norm_groups"
            )
        return super().describe(options, channels, image_size)

    def norm(self, options: Any) -> NormLayer:
        return functools.partial(nn.GroupNorm, options.norm_groups)

    def make_network(self, options: Any, channels: int) -> ResidualNetwork:
        """Builds the network with other convolutions; the names stay."""
        network = super().make_network(options, channels)
        for part in network.modules():
            if type(part) is nn.Conv2d:
                part.__class__ = StandardizedConv2d
        return network


WSResNet18, WSResNet34, WSResNet50, WSResNet101, WSResNet152 = (WSResNet.of_depth(depth) for depth in DEPTHS)
