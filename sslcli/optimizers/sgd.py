"""torch's own SGD."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import model_validator

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin

from .kernels import Decay, kernels


class SGDOptions(OptimizerOptions):
    """Options of stochastic gradient descent."""

    momentum: Decay = 0.9
    """Momentum: the fraction of the last update that is kept."""
    nesterov: bool = False
    """Nesterov momentum; needs a momentum above 0."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class SGD(OptimizerPlugin):
    """Stochastic gradient descent with momentum."""

    Options = SGDOptions

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: SGDOptions) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, **kernels(groups)
        )
        if options.momentum > 0:
            # The fused kernel would allocate the buffers without initializing them, and if the GradScaler skips that
            # first step (as it does while it searches for its scale) the next one adds whatever was in memory.
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
