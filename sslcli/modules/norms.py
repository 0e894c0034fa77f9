"""Norms for heads by name, batch renormalization, and linear layers with standardized weights.

They serve to find out whether a method depends on batch statistics, as Richemond et al. did for BYOL,
https://arxiv.org/abs/2010.10241.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.optimizer import Role

NormName = Literal["none", "batch", "layer", "group", "batch_renorm"]


class BatchRenorm1d(nn.Module):
    """Batch norm corrected toward the running statistics: Ioffe, https://arxiv.org/abs/1702.03275, algorithm 1.

    x̂ = (x − μ_B)/σ_B · r + d with r = σ_B/σ clipped to [1/r_max, r_max] and d = (μ_B − μ)/σ clipped to ±d_max, both
    without gradient. The limits start at 1 and 0, where it is plain batch norm, and are relaxed as in the paper. The
    steps that they depend on are counted in a buffer, so that a run resumes exactly. Not a subclass of torch's batch
    norm, which SyncBN's converter would replace: each process normalizes with its own samples, and the training loop
    averages the running statistics after each step.

    Args:
        features: D.
        eps: added to variances.
        momentum: share of the batch's statistics in the running ones' update.

    Attributes:
        running_mean: (D,), μ.
        running_var: (D,), σ²; unbiased, as torch's batch norm keeps it.
        steps: training forwards done, a 0-dim float tensor.
    """

    parameter_roles: ClassVar[dict[str, Role]] = {"weight": "norm", "bias": "norm"}

    running_mean: Tensor
    running_var: Tensor
    steps: Tensor

    #: Final limits of r and d.
    r_max, d_max = 3.0, 5.0
    #: Forwards as plain batch norm, before the limits grow linearly; those after which r's and d's limits are final.
    plain_steps, r_steps, d_steps = 5000, 40000, 25000

    def __init__(self, features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("steps", torch.zeros(()))

    def _relaxed(self, end: int) -> Tensor:
        """0 until `plain_steps`, 1 from `end`, linear between."""
        return ((self.steps - self.plain_steps) / max(end - self.plain_steps, 1)).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D). Raises ValueError for a batch of one in training mode, which has no variance."""
        with torch.autocast(x.device.type, enabled=False):
            y = x.to(torch.promote_types(x.dtype, self.running_mean.dtype))
            y = self._train(y) if self.training else (y - self.running_mean) * (self.running_var + self.eps).rsqrt()
            return (y * self.weight + self.bias).to(x.dtype)

    def _train(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ValueError(f"batch renormalization needs more than one sample in training mode, got {tuple(x.shape)}")
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        std = (variance + self.eps).sqrt()
        with torch.no_grad():
            running_std = (self.running_var + self.eps).sqrt()
            r_limit = 1 + (self.r_max - 1) * self._relaxed(self.r_steps)
            d_limit = self.d_max * self._relaxed(self.d_steps)
            r = torch.minimum(torch.maximum(std / running_std, 1 / r_limit), r_limit)
            d = torch.minimum(torch.maximum((mean - self.running_mean) / running_std, -d_limit), d_limit)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (len(x) / (len(x) - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.steps.add_(1)
        return (x - mean) / std * r + d


class StandardizedLinear(nn.Linear):
    """A linear layer whose every row of weights is brought to mean 0 and variance 1/fan-in before use.

    Ŵ = (W − μ)/√(fan-in · σ²), per output: Qiao et al., https://arxiv.org/abs/1903.10520, with the fan-in scaling of
    Brock et al., https://arxiv.org/abs/2101.08692, so that outputs keep their size where no norm follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, E)."""
        variance, mean = torch.var_mean(self.weight, dim=1, correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance * self.in_features + 1e-5)
        return F.linear(x, weight, self.bias)


def build_norm(
    name: NormName, features: int, *, groups: int = 32, eps: float = 1e-5, momentum: float = 0.1
) -> nn.Module | None:
    """Returns the norm layer for vectors (N, `features`), or None for `none`.

    Args:
        name: of the norm.
        features: dimensions to normalize.
        groups: of the norm `group`.
        eps: added to variances.
        momentum: of the running statistics of `batch` and `batch_renorm`.

    Raises:
        UserError: if a group norm's groups do not divide `features`.
    """
    if name == "none":
        return None
    if name == "group":
        if features % groups:
            raise UserError(
                f"norm 'group': {features} dimensions cannot be divided into {groups} groups; change `groups`"
            )
        return nn.GroupNorm(groups, features, eps=eps)
    if name == "layer":
        return nn.LayerNorm(features, eps=eps)
    return (nn.BatchNorm1d if name == "batch" else BatchRenorm1d)(features, eps=eps, momentum=momentum)
