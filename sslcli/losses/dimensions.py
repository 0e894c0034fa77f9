"""What losses over pairs of dimensions share: every process's embeddings, and its own part of a D×D product.

Barlow Twins, https://arxiv.org/abs/2103.03230, and VICReg, https://arxiv.org/abs/2105.04906, both take statistics over
the whole batch and then a D×D matrix. Gathering the embeddings moves B·D numbers a view and twice that in the backward;
adding up the processes' matrices would move 2·D². At the papers' D = 8192 and B = 2048 that is 192 MiB against 512. And
since every process then has the whole batch, each makes only its own rows of the matrix, so that nothing large is
computed or stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from sslcli.distributed import all_gather, rank, world_size


def checked_views(views: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Returns the views in their common type, float32 at least.

    Raises:
        ValueError: if not all are floating (N, D) of one shape with a row and a dimension, or there is no pair of them.
    """
    shape = views[0].shape
    if len(shape) != 2 or any(view.shape != shape for view in views) or 0 in shape:
        shapes = " and ".join(str(tuple(view.shape)) for view in views)
        raise ValueError(f"(N, D) tensors of equal shape, with a row and a dimension, are needed, not {shapes}")
    if not all(view.is_floating_point() for view in views):
        raise ValueError("embeddings must be floating, not whole numbers")
    if not pairs:
        raise ValueError("at least one pair of views is needed")
    dtype = reduce(torch.promote_types, (view.dtype for view in views), torch.float32)
    return [view.to(dtype) for view in views]


def check_weights(**weights: float) -> None:
    """Raises ValueError, with the name, if a number is negative, infinite or NaN."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of 0 or more, not {value}")


def gather_centered(views: Sequence[Tensor]) -> list[Tensor]:
    """Returns every process's rows of each view (N, D) less their mean: (B, D) each, with gradient, in one gather."""
    everyone = all_gather(torch.cat(list(views), dim=1), gradient=True)  # B×VD
    return list((everyone - everyone.mean(dim=0)).chunk(len(views), dim=1))


def dimension_products(a: Tensor, b: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Returns this process's share of M = aᵀb/divisor: its part of M's diagonal, and its part of Σ_{i≠j} Mᵢⱼ².

    Args:
        a: (B, D), the same on every process. Process r of W makes the r-th of W blocks of M's rows.
        b: (B, D), likewise.
        divisor: B or B − 1.

    Returns:
        (about D/W,) and 0-dim. Sums of world × the shares have the whole M's value as their mean over the processes.
    """
    size, longer = divmod(a.shape[1], world_size())
    start = rank() * size + min(rank(), longer)
    rows = slice(start, start + size + (rank() < longer))
    diagonal = (a[:, rows] * b[:, rows]).sum(dim=0) / divisor
    if (world_size() + 1) * len(a) <= a.shape[1]:
        # ‖aᵀb‖² = Σ (aaᵀ)∘(bbᵀ), which is B×B; every process makes all of bbᵀ, so that it is cheaper up to here (at
        # D = 8192 and B = 256, forward and backward on one CPU thread, 0.11 s instead of 2.2). M's rank is at most B:
        # its squares sum to (ΣMᵢᵢ)²/B at least. Where dimensions vary alike this is twice what the diagonal has, and
        # little is lost when that is subtracted.
        squares = ((a[:, rows] @ a[:, rows].T) * (b @ b.T)).sum() / divisor**2
        return diagonal, squares - diagonal.square().sum()
    product = a[:, rows].T @ b / divisor
    # Left out, not subtracted afterward: near the optimum the diagonal is nearly all of the sum of squares.
    product.diagonal(start).zero_()
    return diagonal, product.square().sum()
