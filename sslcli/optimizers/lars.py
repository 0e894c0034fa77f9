"""LARS: SGD whose step for each layer is proportional to the norm of the layer's weights.

You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*, 2017, https://arxiv.org/abs/1708.03888; with
the learning rate outside the momentum, as in BYOL, Barlow Twins and VICReg, and inside, as in SimCLR.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sslcli.contracts.optimizer import OptimizerOptions, OptimizerPlugin

from .kernels import Decay, scale_each_
from .layerwise import LayerwiseSGD, decayed, gradients, norms

#: What the norm of the weights is divided by: ‖g + weight_decay·w‖, or ‖g‖ + weight_decay·‖w‖.
Denominator = Literal["norm_of_sum", "sum_of_norms"]


class LARS(LayerwiseSGD):
    """Layer-wise adaptive rate scaling. For each parameter w with gradient g:

        d ← g + weight_decay·w
        d ← d · trust_coefficient·‖w‖/‖d‖     unless excluded or of fewer than 2 dimensions; 1 where a norm is 0
        m ← momentum·m + d
        w ← w − lr·m

    Args:
        params: parameters or groups; a group's `excluded: True` means no trust ratio for it. Extra keys are kept.
        lr: learning rate; a number or a 0-dim tensor.
        momentum: μ in [0, 1).
        weight_decay: L2 penalty, part of the direction that is scaled.
        trust_coefficient: η.
        trust_denominator: `sum_of_norms` divides by ‖g‖ + weight_decay·‖w‖ in place of ‖d‖.
        scale_1d: the trust ratio is for tensors of fewer than 2 dimensions too.

    Raises:
        ValueError: if a number is out of its range.
    """

    lr_in_momentum: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        trust_denominator: Denominator = "norm_of_sum",
        scale_1d: bool = False,
    ) -> None:
        own = {"trust_denominator": trust_denominator, "exclude_1d": not scale_1d}
        super().__init__(params, lr, momentum, weight_decay, trust_coefficient, own)

    def directions(
        self, parameters: list[Tensor], group: dict[str, Any], *, scaled: bool
    ) -> tuple[list[Tensor], float | Tensor]:
        inside, outside = (group["lr"], 1.0) if self.lr_in_momentum else (1.0, group["lr"])
        directions = decayed(parameters, group["weight_decay"])
        if scaled:
            scale_each_(directions, _trust_ratios(parameters, directions, group) * inside)
        elif self.lr_in_momentum:
            torch._foreach_mul_(directions, inside)
        return directions, outside


class LARSSimCLR(LARS):
    """LARS as in SimCLR's code: as `LARS`, except for the last two lines, which are

        m ← momentum·m + lr·d
        w ← w − m

    The two are the same for a constant learning rate. When it falls, the momentum still contains steps at the old one.
    """

    lr_in_momentum = True


def _trust_ratios(parameters: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> Tensor:
    weight_norms = norms(parameters)
    if group["trust_denominator"] == "norm_of_sum":
        denominators = norms(directions)
    else:
        denominators = norms(gradients(parameters)) + group["weight_decay"] * weight_norms
    ratios = group["trust_coefficient"] * weight_norms / denominators
    # A layer initialized to zeros would never move, and a direction of zeros would give 0/0.
    usable = (weight_norms > 0) & (denominators > 0)
    return torch.where(usable, ratios, torch.ones_like(ratios))


class LARSOptions(OptimizerOptions):
    """Options of LARS."""

    momentum: Decay = 0.9
    """Momentum: the fraction of the last update that is kept."""
    trust_coefficient: float = Field(default=0.001, gt=0)
    """η: the size of a layer's step as a fraction of the norm of its weights."""
    trust_denominator: Denominator = "norm_of_sum"
    """What η‖w‖ is divided by: the norm of gradient plus weight decay, ‖g + weight_decay·w‖, as in SimCLR's, BYOL's,
    Barlow Twins' and VICReg's code; or the sum of both norms, ‖g‖ + weight_decay·‖w‖, as in LARS's paper and
    untitled-ai's code."""
    scale_1d: bool = False
    """Scale tensors of fewer than two dimensions too, unless `exclude` has their role, as untitled-ai's code does."""
    lr_excluded: float | None = Field(default=None, gt=0)
    """Learning rate of the excluded parameters, scaled and scheduled like `lr`; null: the same as `lr`."""


class LARSPlugin(OptimizerPlugin):
    """LARS: SGD with a learning rate for each tensor, for large batches."""

    Options = LARSOptions
    paper = "https://arxiv.org/abs/1708.03888"
    kind: ClassVar[type[LARS]] = LARS

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: LARSOptions) -> torch.optim.Optimizer:
        if options.lr_excluded is not None:
            factor = options.lr_excluded / options.lr
            groups = [
                {**group, "lr_multiplier": group.get("lr_multiplier", 1.0) * (factor if group["excluded"] else 1.0)}
                for group in groups
            ]
        return cls.kind(
            groups, options.lr, momentum=options.momentum, trust_coefficient=options.trust_coefficient,
            trust_denominator=options.trust_denominator, scale_1d=options.scale_1d,
        )  # fmt: skip


class LARSSimCLRPlugin(LARSPlugin):
    """LARS as in SimCLR's code, with the learning rate inside the momentum."""

    paper = "https://arxiv.org/abs/2002.05709"
    kind = LARSSimCLR
