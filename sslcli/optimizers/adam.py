"""torch's own Adam."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin

from .kernels import Decay, kernels


class AdamOptions(OptimizerOptions):
    """Options of Adam and AdamW."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class Adam(OptimizerPlugin):
    """Adam; its weight decay is an L2 penalty, part of the gradient."""

    Options = AdamOptions
    paper = "https://arxiv.org/abs/1412.6980"
    kind: ClassVar[type[torch.optim.Adam]] = torch.optim.Adam

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: AdamOptions) -> torch.optim.Optimizer:
        return cls.kind(groups, lr=options.lr, betas=options.betas, eps=options.eps, **kernels(groups))
