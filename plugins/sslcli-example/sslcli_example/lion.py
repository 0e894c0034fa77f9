"""Lion: steps along the sign of a momentum (Chen et al., *Symbolic Discovery of Optimization Algorithms*,
arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin

Decay = Annotated[float, Field(ge=0, lt=1)]


class Lion(torch.optim.Optimizer):
    """For each parameter w with gradient g and momentum m:

        w ← w − lr·(sign(β₁·m + (1 − β₁)·g) + weight_decay·w)
        m ← β₂·m + (1 − β₂)·g

    Multi-tensor operations only; no step waits for the device. State: `momentum` per parameter.

    Args:
        groups: parameter groups; extra keys are kept.
        lr: learning rate, three to ten times smaller than AdamW's.
        betas: β₁ and β₂.
        weight_decay: decoupled.
    """

    def __init__(
        self, groups: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            beta1, beta2 = group["betas"]
            direction = torch._foreach_lerp(gradients, momenta, weight=beta1)
            torch._foreach_sign_(direction)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, direction, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, weight=1 - beta2)


class LionOptions(OptimizerOptions):
    """Options of Lion."""

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Weight of the momentum in the step, and its decay rate."""


class LionPlugin(OptimizerPlugin):
    """Steps of equal size for all weights, along the sign of a momentum."""

    Options = LionOptions
    paper = "https://arxiv.org/abs/2302.06675"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: LionOptions) -> torch.optim.Optimizer:
        return Lion(groups, options.lr, options.betas)
