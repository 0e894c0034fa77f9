"""Barlow Twins' loss: the cross-correlation of two views' dimensions should be the identity.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021,
https://arxiv.org/abs/2103.03230, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslcli.distributed import world_size

from .dimensions import check_views, check_weights, dimension_products, gather_centered, in_full_precision

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
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or λ is negative.
    """
    check_weights(lambda_=lambda_)
    on_diagonal, off_diagonal = barlow_twins_terms((z1, z2), ((0, 1),))
    return on_diagonal + lambda_ * off_diagonal


def barlow_twins_terms(views: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Returns Σᵢ (1 − Cᵢᵢ)² and Σ_{i≠j} Cᵢⱼ², without λ, each the mean over pairs of views; see `barlow_twins`.

    Args:
        views: (N, D) each. A view is gathered and standardized once, however many pairs it is in.
        pairs: places in `views`, at least one pair.

    Raises:
        ValueError: if the shapes are not equal (N, D), or there is no pair.
    """
    check_views(views)
    if not pairs:
        raise ValueError("at least one pair of views is needed")
    with torch.autocast(views[0].device.type, enabled=False):
        standardized = [
            z * (z.square().mean(dim=0) + EPS).rsqrt() for z in gather_centered(in_full_precision(views))
        ]  # B×D each
        on_diagonal, off_diagonal = [], []
        for a, b in pairs:
            diagonal, others = dimension_products(standardized[a], standardized[b], len(standardized[a]))
            on_diagonal.append((1 - diagonal).square().sum())
            off_diagonal.append(others)
        share = world_size()
        return torch.stack(on_diagonal).mean() * share, torch.stack(off_diagonal).mean() * share
