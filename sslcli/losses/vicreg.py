"""VICReg's loss: views agree (invariance), dimensions vary (variance) and don't repeat each other (covariance).

Bardes, Ponce, LeCun, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, ICLR 2022,
https://arxiv.org/abs/2105.04906, equations 1 to 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import world_size

from .dimensions import check_weights, checked_views, dimension_products, gather_centered


def vicreg(
    z1: Tensor,
    z2: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> Tensor:
    """Returns invariance·MSE(z₁, z₂) + variance·½[v(z₁) + v(z₂)] + covariance·[c(z₁) + c(z₂)].

    v(z) = mean over the dimensions of relu(1 − √(Var + ε)); c(z) = Σ_{i≠j} Covᵢⱼ²/D; both with B − 1 in the
    denominator, over the B images of all processes. MSE is the mean over all N·D elements and v is halved, as in the
    authors' code (the paper's equations 5 and 6 sum over the dimensions and don't halve). Nothing is normalized.

    Over several processes the embeddings are gathered with gradient: the mean of the processes' losses, and their
    gradients averaged as DDP does, are those of one process with the joined batch. A batch of one image has variance
    and covariance 0, as equal embeddings have: v = 1 − √ε and c = 0, without gradient.

    Args:
        z1: (N, D) embeddings of the first views, floating; N is the same on every process.
        z2: (N, D) embeddings of the second views, in the same order.
        invariance: λ ≥ 0.
        variance: μ ≥ 0.
        covariance: ν ≥ 0.
        epsilon: ε > 0, inside the root.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or a number is out of its range.
    """
    return vicreg_and_metrics((z1, z2), ((0, 1),), invariance, variance, covariance, epsilon)[0]


def vicreg_and_metrics(
    views: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `vicreg`, the mean over pairs of views, and its terms without their weights, 0-dim without gradient:
    `invariance`, MSE(a, b), `variance`, ½[v(a) + v(b)], and `covariance`, c(a) + c(b).

    Args:
        views: (N, D) each. A view is gathered, and its statistics made, once, however many pairs it is in.
        pairs: indices into `views`, at least one pair.
        invariance, variance, covariance, epsilon: as for `vicreg`.

    Raises:
        ValueError: if the shapes are not equal (N, D), there is no pair, or a number is out of its range.
    """
    check_weights(invariance=invariance, variance=variance, covariance=covariance)
    own = checked_views(views, pairs)
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive, not {epsilon}")
    with torch.autocast(own[0].device.type, enabled=False):
        distance = torch.stack([F.mse_loss(own[i], own[j]) for i, j in pairs]).mean()
        v, c = zip(*(_statistics(z, epsilon) for z in gather_centered(own)), strict=True)
        hinge = torch.stack([(v[i] + v[j]) / 2 for i, j in pairs]).mean()
        squares = torch.stack([c[i] + c[j] for i, j in pairs]).mean()
        loss = invariance * distance + variance * hinge + covariance * squares
    terms = {"invariance": distance, "variance": hinge, "covariance": squares}
    return loss, {name: term.detach() for name, term in terms.items()}


def _statistics(z: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """v and c of centered embeddings (B, D); of c world × this process's share."""
    degrees = max(len(z) - 1, 1)
    deviation = (z.square().sum(dim=0) / degrees + epsilon).sqrt()
    _, others = dimension_products(z, z, degrees)
    return F.relu(1 - deviation).mean(), others / z.shape[1] * world_size()
