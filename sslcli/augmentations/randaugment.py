"""The operation `randaugment`: operations of PIL's drawn from a list, for images with three channels.

Cubuk et al., *RandAugment*, https://arxiv.org/abs/1909.13719, in timm's version, with which DeiT and MAE train: the
magnitude is drawn anew for each operation, and a higher one never means less (`rand-m9-mstd0.5-inc1`, the defaults).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.views import Parameters

from .levels import OPERATIONS
from .policies import MOST, Policy, PolicyOptions, values_of


class RandAugmentOptions(PolicyOptions):
    """Options of RandAugment."""

    p: float = Field(default=0.5, ge=0, le=1)
    """Probability of each of the operations that are drawn for a sample (timm's; the paper applies all of them)."""
    layers: int = Field(default=2, ge=1, le=100)
    """Operations that are drawn for each sample, out of 15."""
    magnitude: float = Field(default=9.0, ge=0, le=MOST)
    """How strong they are, from 0 to 10."""
    magnitude_std: float = Field(default=0.5, ge=0)
    """Standard deviation of the normal distribution around it that each magnitude is drawn from."""


class RandAugment(Policy):
    """RandAugment.
    Operations drawn for each sample, each with a magnitude and a direction of its own."""

    Options = RandAugmentOptions
    drawn = frozenset({"p", "magnitude", "magnitude_std", "fill"})
    options: RandAugmentOptions

    def __init__(self, options: Any, size: int) -> None:
        super().__init__(options, size)
        self.draws = 4 * options.layers

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        options = self.options
        number, on, direction, normal = uniform.view(-1, 4, options.layers).unbind(1)
        kind = (number * len(OPERATIONS)).long()
        spread = options.magnitude_std * torch.special.ndtri(normal.clamp(min=1e-16))
        level = (options.magnitude + spread).clamp(0, MOST)
        values = values_of(kind, level, direction < 0.5, self.size, "increasing")
        return self.packed(kind.where(on < options.p, -1), values)
