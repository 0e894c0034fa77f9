"""The momentum encoder: copies of modules that follow the online ones as an exponential moving average.

He et al. (MoCo), https://arxiv.org/abs/1911.05722; the cosine schedule is BYOL's, https://arxiv.org/abs/2006.07733.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.method import MethodOptions, Progress, StepFunction

from .cosine import half_cosine


class MomentumOptions(MethodOptions):
    """Options of methods whose EMA momentum rises over the run."""

    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Initial EMA momentum of the momentum encoder; 0 copies the online network."""
    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """EMA momentum at the end of the run, approached along a cosine; equal to `momentum`: constant."""

    def momentum_schedule(self, total_steps: int) -> StepFunction:
        """Returns m(t) = m_T − (m_T − m₀)·(1 + cos(π·t/T))/2 of the step t of T: BYOL's formula where m_T is 1.

        With m_T = m₀, or None, it is exactly m₀ throughout (MoCo's fixed momentum).
        """
        final = self.momentum if self.final_momentum is None else self.final_momentum
        return lambda step: half_cosine(self.momentum, final, step, total_steps)

    def momentum_at(self, progress: Progress) -> float:
        """Returns the momentum of the update after a step: after step t (counted from 0) it is m(t + 1), which is what
        MoCo's update before the next forward uses."""
        return self.momentum_schedule(progress.total_steps)(progress.step)


class TargetMomentumOptions(MomentumOptions):
    """Options of methods whose authors update the momentum encoder after the optimizer, at the end of a step."""

    momentum_step: Literal["this", "next"] = "this"
    """Which EMA momentum of the cosine the update after a step uses: that of this step, so that the first is `momentum`
    as in the authors' code, or that of the next one, as sslcli 0.1 did."""

    legacy: ClassVar[Mapping[str, Any]] = {"momentum_step": "next"}

    def momentum_at(self, progress: Progress) -> float:
        """Returns m(t) after step t, counted from 0, or m(t + 1)."""
        if self.momentum_step == "this":
            progress = dataclasses.replace(progress, step=progress.step - 1)
        return super().momentum_at(progress)


class MomentumEncoder(nn.Module):
    """Copies of modules, never trained: `follow` moves them toward the online ones.

    Only parameters follow. Buffers (the running statistics of batch norm) stay the copy's own: in training mode it
    normalizes with its own batch, as BYOL's and MoCo's do.
    """

    def __init__(self, **modules: nn.Module) -> None:
        """Args:
        modules: copied with their weights, under these names: `MomentumEncoder(backbone=…, projector=…)` has the copies
            `backbone` and `projector`. Compile a module after its copy was made.
        """
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module))
        self.requires_grad_(False)

    if TYPE_CHECKING:  # the copies, whatever they are

        def __getattr__(self, name: str) -> Any: ...

    def forward(self, images: Tensor) -> Tensor:
        """Returns the projections (N, E) of images (N, C, H, W), without gradient; without a `projector` the pooled
        features (N, D)."""
        with torch.no_grad():
            pooled: Tensor = self.backbone(images).pooled
            return self.projector(pooled) if "projector" in self._modules else pooled

    @torch.no_grad()
    def follow(self, *, value: float, **modules: nn.Module) -> None:
        """Sets each parameter w′ to m·w′ + (1 − m)·w, in a few multi-tensor kernels, without waiting for the device.

        Args:
            value: m, the EMA momentum, in [0, 1].
            modules: the online ones, w, under the names of their copies; copies that are not named stay as they are.
        """
        copies: list[Tensor] = [parameter for name in modules for parameter in self.get_submodule(name).parameters()]
        online: list[Tensor] = [parameter for module in modules.values() for parameter in module.parameters()]
        torch._foreach_lerp_(copies, online, weight=1 - value)
