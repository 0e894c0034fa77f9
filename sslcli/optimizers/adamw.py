"""torch's own AdamW."""

from __future__ import annotations

from typing import Any

import torch

from sslcli.contracts.optimizer import OptimizerPlugin

from .adam import AdamOptions
from .kernels import kernels


class AdamW(OptimizerPlugin):
    """Adam with decoupled weight decay."""

    Options = AdamOptions
    paper = "https://arxiv.org/abs/1711.05101"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: AdamOptions) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, **kernels(groups))
