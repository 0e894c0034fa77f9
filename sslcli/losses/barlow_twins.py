"""Barlow Twins' loss: the cross-correlation of two views' dimensions should be the identity.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021,
https://arxiv.org/abs/2103.03230, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslcli.distributed import world_size

from .dimensions import check_weights, checked_views, dimension_products, gather_centered

#: Added to the variances, as the batch norm of the authors' code does.
EPS = 1e-5


def barlow_twins(z1: Tensor, z2: Tensor, lambda_: float = 0.0051) -> Tensor:
    """Returns Σᵢ (1 − Cᵢᵢ)² + λ·Σ_{i≠j} Cᵢⱼ² with C = BN(z₁)ᵀ·BN(z₂)/B.

    Nothing is L2-normalized: BN brings each *dimension* to mean 0 and variance 1 over the B images of all processes
    (biased variance, ε 1e-5), whatever the networks' own batch norms do. The embeddings are gathered with gradient and
    every process returns world × its share: the mean of the processes' losses, and their gradients averaged as DDP
    does, are those of one process with the joined batch.

    Where a dimension doesn't vary (equal embeddings; a batch of one) its correlations are 0, and so is its gradient:
    the loss of a batch of one is D.

    Args:
        z1: (N, D) embeddings of the first views, floating; N is the same on every process.
        z2: (N, D) embeddings of the second views, in the same order.
        lambda_: λ ≥ 0, the weight of the off-diagonal elements.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or λ is negative.
    """
    return barlow_twins_and_metrics((z1, z2), ((0, 1),), lambda_)[0]


def barlow_twins_and_metrics(
    views: Sequence[Tensor], pairs: Sequence[tuple[int, int]], lambda_: float = 0.0051
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `barlow_twins`, the mean over pairs of views, and its terms without λ, 0-dim without gradient:
    `on_diagonal`, Σᵢ (1 − Cᵢᵢ)², and `off_diagonal`, Σ_{i≠j} Cᵢⱼ².

    Args:
        views: (N, D) each. A view is gathered and standardized once, however many pairs it is in.
        pairs: indices into `views`, at least one pair.
        lambda_: as for `barlow_twins`.

    Raises:
        ValueError: if the shapes are not equal (N, D), there is no pair, or λ is negative.
    """
    check_weights(lambda_=lambda_)
    own = checked_views(views, pairs)
    with torch.autocast(own[0].device.type, enabled=False):
        standardized = [z * (z.square().mean(dim=0) + EPS).rsqrt() for z in gather_centered(own)]  # B×D each
        on_diagonal, off_diagonal = [], []
        for i, j in pairs:
            diagonal, others = dimension_products(standardized[i], standardized[j], len(standardized[i]))
            on_diagonal.append((1 - diagonal).square().sum())
            off_diagonal.append(others)
        on = torch.stack(on_diagonal).mean() * world_size()
        off = torch.stack(off_diagonal).mean() * world_size()
        return on + lambda_ * off, {"on_diagonal": on.detach(), "off_diagonal": off.detach()}
