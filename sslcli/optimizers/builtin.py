"""torch's own SGD, Adam and AdamW, fused where the device has such kernels.

Fused CPU kernels walk through memory and ignore strides: whoever restores optimizer state must give it the memory
format of its parameter (`torch.empty_like(parameter).copy_(saved)`), or updates are silently wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin

_FUSED_DEVICES = ("cuda", "cpu")
Decay = Annotated[float, Field(ge=0, lt=1)]


class SGDOptions(OptimizerOptions):
    """Options of stochastic gradient descent."""

    momentum: Decay = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Nesterov's look-ahead; needs momentum."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class SGD(OptimizerPlugin):
    """Stochastic gradient descent with momentum."""

    Options: ClassVar[type[OptimizerOptions]] = SGDOptions

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: SGDOptions) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, **_kernels(groups)
        )
        if options.momentum > 0:
            # Left to itself the fused kernel allocates the buffers without writing them, and if the GradScaler skips
            # that first step (as it does while it looks for its scale) the next one adds whatever was in memory.
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class AdamOptions(OptimizerOptions):
    """Options of Adam and AdamW."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class Adam(OptimizerPlugin):
    """Adam; its weight decay is an L2 penalty, part of the gradient."""

    Options: ClassVar[type[OptimizerOptions]] = AdamOptions
    paper: ClassVar[str] = "https://arxiv.org/abs/1412.6980"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: AdamOptions) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=options.lr, betas=options.betas, eps=options.eps, **_kernels(groups))


class AdamW(OptimizerPlugin):
    """Adam with decoupled weight decay."""

    Options: ClassVar[type[OptimizerOptions]] = AdamOptions
    paper: ClassVar[str] = "https://arxiv.org/abs/1711.05101"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: AdamOptions) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, **_kernels(groups))


def _kernels(groups: list[dict[str, Any]]) -> dict[str, bool]:
    """Fused kernels, else multi-tensor ones: torch raises only at the first step where it has no fused ones."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
