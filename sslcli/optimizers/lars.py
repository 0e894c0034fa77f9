"""LARS: SGD whose step for each layer is in proportion to the norm of the layer's weights.

You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*, 2017, arXiv:1708.03888; here with the learning
rate outside of the momentum, as BYOL, Barlow Twins and VICReg use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling. For each parameter w with gradient g:

        d ← g + weight_decay·w
        d ← d · trust_coefficient·‖w‖/‖d‖     unless excluded or of fewer than 2 dimensions; 1 where a norm is 0
        m ← momentum·m + d
        w ← w − lr·m

    Multi-tensor throughout; no step waits for the device. State: `momentum_buffer` per parameter.

    Args:
        params: parameters or groups; a group's `excluded: True` means no trust ratio for it. Extra keys are kept.
        lr: learning rate; a number or a 0-dim tensor.
        momentum: μ in [0, 1).
        weight_decay: L2 penalty, part of the direction that is scaled.
        trust_coefficient: η.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"lr must not be negative: {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1): {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative: {weight_decay}")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient must be positive: {trust_coefficient}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "excluded": False,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used = [parameter for parameter in group["params"] if parameter.grad is not None]
            scaled = [p for p in used if p.ndim >= 2 and not group["excluded"]]
            plain = [p for p in used if p.ndim < 2 or group["excluded"]]
            if scaled:
                direction = _directions(scaled, group)
                self._update(scaled, torch._foreach_mul(direction, _trust_ratios(scaled, direction, group)), group)
            if plain:
                self._update(plain, _directions(plain, group), group)
        return loss

    def _update(self, parameters: list[Tensor], direction: tuple[Tensor, ...], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, direction)
        if isinstance(group["lr"], Tensor):  # as `alpha` it would have to be read on the host
            torch._foreach_sub_(parameters, torch._foreach_mul(buffers, group["lr"]))
        else:
            torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _directions(parameters: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
    gradients = tuple(parameter.grad for parameter in parameters if parameter.grad is not None)
    if group["weight_decay"] == 0:
        return gradients
    return tuple(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))


def _trust_ratios(parameters: list[Tensor], direction: tuple[Tensor, ...], group: dict[str, Any]) -> list[Tensor]:
    weight_norms = torch.stack(torch._foreach_norm(parameters))
    direction_norms = torch.stack(torch._foreach_norm(direction))
    ratios = group["trust_coefficient"] * weight_norms / direction_norms
    # A new layer of zeros would never move, and a zero direction would make 0/0.
    usable = (weight_norms > 0) & (direction_norms > 0)
    return list(torch.where(usable, ratios, torch.ones_like(ratios)).unbind())


class LARSOptions(OptimizerOptions):
    """Options of LARS."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the last update that is kept."""
    trust_coefficient: float = Field(default=0.001, gt=0)
    """η: the size of a layer's step as a share of the norm of its weights."""
    lr_excluded: float | None = Field(default=None, gt=0)
    """Learning rate of the excluded parameters, scaled and scheduled like `lr`; null: the same as `lr`."""


class LARSPlugin(OptimizerPlugin):
    """LARS for large batches."""

    Options: ClassVar[type[OptimizerOptions]] = LARSOptions
    paper: ClassVar[str] = "https://arxiv.org/abs/1708.03888"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: LARSOptions) -> torch.optim.Optimizer:
        if options.lr_excluded is not None:
            factor = options.lr_excluded / options.lr
            groups = [
                {**group, "lr_multiplier": group.get("lr_multiplier", 1.0) * (factor if group["excluded"] else 1.0)}
                for group in groups
            ]
        return LARS(groups, options.lr, momentum=options.momentum, trust_coefficient=options.trust_coefficient)
