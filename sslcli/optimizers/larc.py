"""LARC: SGD with a learning rate for each tensor, which is clipped at the run's learning rate or multiplied by it.

The rule is that of You, Gitman, Ginsburg, https://arxiv.org/abs/1708.03888, as in apex's LARC, which SwAV (without
`clip`) and SimSiam's linear evaluation use; with `trust_coefficient: 0.02, clip: true, exclude_1d: true,
exclude: []` it is the optimizer that solo-learn calls LARS.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sslcli.contracts.optimizer import OptimizerPlugin

from .kernels import scale_each_
from .layerwise import LayerwiseSGD, decayed, gradients, norms
from .sgd import SGDOptions


class LARC(LayerwiseSGD):
    """Layer-wise adaptive rate clipping. For each parameter w with gradient g:

        r ← trust_coefficient·‖w‖/(‖g‖ + weight_decay·‖w‖ + eps)
        r ← min(r/lr, 1)                      with `clip`: lr·r is the smaller of the two learning rates
        d ← r·(g + weight_decay·w)            d ← g where ‖w‖ or ‖g‖ is 0: neither decay nor ratio
        m ← momentum·m + d
        w ← w − lr·m                          w − lr·(d + momentum·m) with `nesterov`

    Args:
        params: parameters or groups; a group's `excluded: True` means r = 1 for it. Extra keys are kept.
        lr: learning rate; a number or a 0-dim tensor.
        momentum: μ in [0, 1).
        weight_decay: L2 penalty.
        trust_coefficient: η.
        clip: cap the learning rate at the ratio, instead of multiplying them.
        exclude_1d: tensors of fewer than 2 dimensions get neither decay nor ratio.
        eps: ε, added to the denominator.
        nesterov: Nesterov momentum.

    Raises:
        ValueError: if a number is out of range, or if `nesterov` is given without momentum.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        clip: bool = True,
        exclude_1d: bool = False,
        eps: float = 1e-8,
        nesterov: bool = False,
    ) -> None:
        if not eps >= 0:
            raise ValueError(f"eps must not be negative: {eps}")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        super().__init__(
            params, lr, momentum, weight_decay, trust_coefficient,
            {"clip": clip, "exclude_1d": exclude_1d, "eps": eps, "nesterov": nesterov},
        )  # fmt: skip

    def directions(
        self, parameters: list[Tensor], group: dict[str, Any], *, scaled: bool
    ) -> tuple[list[Tensor], float | Tensor]:
        undecayed = not scaled and group["exclude_1d"] and not group["excluded"]
        directions = decayed(parameters, 0.0 if undecayed else group["weight_decay"])
        if scaled:
            scale_each_(directions, _ratios(parameters, group))
        return directions, group["lr"]


def _ratios(parameters: list[Tensor], group: dict[str, Any]) -> Tensor:
    """Returns what to multiply g + weight_decay·w by: the ratio; 1 where w is 0; 0 where g is 0, and d so too."""
    weight_norms, gradient_norms = norms(parameters), norms(gradients(parameters))
    denominator = gradient_norms + group["weight_decay"] * weight_norms + group["eps"]
    ratios = group["trust_coefficient"] * weight_norms / denominator
    if group["clip"]:
        # min(r/lr, 1) without 0/0, which would stay in the momentum: a warm-up from 0 has lr = 0.
        ratios = torch.where(ratios < group["lr"], ratios / group["lr"], torch.ones_like(ratios))
    ratios = torch.where(weight_norms > 0, ratios, torch.ones_like(ratios))
    return torch.where(gradient_norms > 0, ratios, torch.zeros_like(ratios))


class LARCOptions(SGDOptions):
    """Options of LARC: those of SGD, and its own."""

    trust_coefficient: float = Field(default=0.001, gt=0)
    """η: each tensor's own learning rate is η‖w‖/(‖g‖ + weight_decay·‖w‖ + eps)."""
    clip: bool = True
    """Use the smaller of that and the run's learning rate; false (SwAV): use their product."""
    exclude_1d: bool = False
    """Tensors of fewer than two dimensions get neither weight decay nor their own learning rate, as in solo-learn,
    whether or not `exclude` has their role."""
    eps: float = Field(default=1e-8, ge=0)
    """Added to the denominator."""


class LARCPlugin(OptimizerPlugin):
    """LARC: SGD with a learning rate for each tensor, proportional to the norm of its weights.

    What `exclude` names gets neither weight decay nor that rate; SwAV uses `exclude: []` and `clip: false`.
    """

    Options = LARCOptions
    paper = "https://arxiv.org/abs/1708.03888"

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: LARCOptions) -> torch.optim.Optimizer:
        return LARC(
            groups, options.lr, momentum=options.momentum, trust_coefficient=options.trust_coefficient,
            clip=options.clip, exclude_1d=options.exclude_1d, eps=options.eps, nesterov=options.nesterov,
        )  # fmt: skip
