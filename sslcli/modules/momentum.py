"""The momentum encoder: a copy of backbone and projector that follows the online ones as an exponential moving average.

He et al. (MoCo), https://arxiv.org/abs/1911.05722; the cosine schedule is BYOL's, https://arxiv.org/abs/2006.07733.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.method import MethodOptions, Progress

from .cosine import half_cosine


class MomentumOptions(MethodOptions):
    """Options of methods whose EMA momentum rises over the run."""

    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Initial EMA momentum of the momentum encoder; 0 copies the online network."""
    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """EMA momentum at the end of the run, approached along a cosine; equal to `momentum`: constant."""

    def momentum_at(self, progress: Progress) -> float:
        """Returns m(t) = m_T − (m_T − m₀)·(1 + cos(π·t/T))/2 with t steps done of T: BYOL's formula where m_T is 1.

        With m_T = m₀, or None, it is exactly m₀ throughout (MoCo's fixed momentum). An update after step t (counted
        from 0) uses m(t + 1), which is what an update before the next forward would use: the same numbers.
        """
        final = self.momentum if self.final_momentum is None else self.final_momentum
        return half_cosine(self.momentum, final, progress.step, progress.total_steps)


class MomentumEncoder(nn.Module):
    """Copies of a backbone and a projector, never trained: `update` moves them toward the online ones.

    Only parameters follow. Buffers (the running statistics of batch norm) stay the copy's own: in training mode it
    normalizes with its own batch, as BYOL's and MoCo's do.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        """Args:
        backbone: images → `Features`; copied with its weights. Compile it after this copy was made.
        projector: (N, D) → (N, E); copied likewise.
        """
        super().__init__()
        self.backbone: Any = copy.deepcopy(backbone)
        self.projector: Any = copy.deepcopy(projector)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the projections (N, E) of images (N, C, H, W), without gradient."""
        with torch.no_grad():
            projection: Tensor = self.projector(self.backbone(images).pooled)
        return projection

    @torch.no_grad()
    def update(self, backbone: nn.Module, projector: nn.Module, momentum: float) -> None:
        """Sets each parameter w′ to m·w′ + (1 − m)·w, with w the online network's and m = `momentum` in [0, 1].

        In a few multi-tensor kernels, without waiting for the device.
        """
        copies: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        online: list[Tensor] = [*backbone.parameters(), *projector.parameters()]
        torch._foreach_lerp_(copies, online, weight=1 - momentum)
