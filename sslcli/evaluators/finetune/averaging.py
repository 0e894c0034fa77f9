"""An exponential moving average of a network's weights, which is evaluated in place of the last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A copy of a network whose state follows the trained one: w′ ← d·w′ + (1 − d)·w after every step.

    Buffers are averaged like weights (the statistics of batch norm), and integers (its counter) copied, as in timm's
    `ModelEma`, which DeiT uses; there is no correction for the start.

    Attributes:
        network: the copy, in `eval()`.
        decay: d, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Takes the state of the trained network in, in a few multi-tensor kernels."""
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                averaged.append(mean)
                current.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(averaged, current, weight=1 - self.decay)
