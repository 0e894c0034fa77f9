"""What losses over pairs of dimensions share: every process's embeddings, and one's own share of a D×D product.

Barlow Twins, https://arxiv.org/abs/2103.03230, and VICReg, https://arxiv.org/abs/2105.04906, both take statistics over
the whole batch and then a D×D matrix. Gathering the embeddings moves B·D numbers a view and twice that in the backward;
adding up the processes' matrices would move 2·D². At the papers' D = 8192 and B = 2048 that is 192 MiB against 512. And
since every process then has the whole batch, each makes only its own rows of the matrix, so that nothing large is
computed or stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslcli.distributed import all_gather, rank, world_size

from .stretches import stretch_length

#: Rows of a D×D product that are made at a time at least: fewer would leave a matrix product idle.
_PRODUCT_ROWS = 512


def check_views(views: Sequence[Tensor]) -> None:
    """Raises ValueError unless all are floating (N, D) of one shape with at least one row and one dimension."""
    shape = views[0].shape
    if len(shape) != 2 or any(view.shape != shape for view in views) or 0 in shape:
        shapes = " and ".join(str(tuple(view.shape)) for view in views)
        raise ValueError(f"(N, D) tensors of equal shape, with a row and a dimension, are needed, not {shapes}")
    if not all(view.is_floating_point() for view in views):
        raise ValueError("embeddings must be floating, not whole numbers")


def check_weights(**weights: float) -> None:
    """Raises ValueError where a number is negative, infinite or none, with its name."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of 0 or more, not {value}")


def in_full_precision(views: Sequence[Tensor]) -> list[Tensor]:
    """Returns the views in their common type, float32 at least."""
    dtype = torch.float32
    for view in views:
        dtype = torch.promote_types(dtype, view.dtype)
    return [view.to(dtype) for view in views]


def gather_centered(views: Sequence[Tensor]) -> list[Tensor]:
    """Returns every process's rows of each view (N, D) less their mean: (B, D) each, with gradient, in one gather."""
    everyone = all_gather(torch.cat(list(views), dim=1), gradient=True)  # B×VD
    return list((everyone - everyone.mean(dim=0)).chunk(len(views), dim=1))


def dimension_products(a: Tensor, b: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Returns this process's share of M = aᵀb/divisor: its part of M's diagonal, and its part of Σ_{i≠j} Mᵢⱼ².

    Args:
        a: (B, D), the same on every process. Process r of W makes the r-th of W stretches of M's rows.
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
        # ‖aᵀb‖² = Σ (aaᵀ)∘(bbᵀ), which is B×B; every process makes all of bbᵀ, so that it is cheaper up to here. M's
        # rank is at most B, so that its squares sum to (ΣMᵢᵢ)²/B at least: where dimensions vary alike twice what the
        # diagonal has, and little is lost when that is subtracted.
        squares = ((a[:, rows] @ a[:, rows].T) * (b @ b.T)).sum() / divisor**2
        return diagonal, squares - diagonal.square().sum()
    others: Tensor = _OffDiagonal.apply(a, b, divisor, rows)
    return diagonal, others


class _OffDiagonal(torch.autograd.Function):
    """Σ_{i≠j} Mᵢⱼ² over some rows of M = aᵀb/divisor, with its gradients, some of these rows at a time.

    All of M at once, its squares and their gradient are 256 MiB each at D = 8192: more than a small network's step.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, divisor: int, rows: slice) -> Tensor:
        total = a.new_zeros(())
        gradient_a, gradient_b = torch.zeros_like(a), torch.zeros_like(b)
        length = max(stretch_length(b.shape[1], b.device), _PRODUCT_ROWS)
        for start in range(rows.start, rows.stop, length):
            part = a[:, start : min(start + length, rows.stop)]
            product = (part.T @ b).div_(divisor)
            # Left out, not subtracted afterward: near the optimum the diagonal is nearly all of the sum of squares.
            product.diagonal(start).zero_()
            total += product.square().sum()
            product *= 2 / divisor
            gradient_a[:, start : start + part.shape[1]] = b @ product.T
            gradient_b.addmm_(part, product)
        ctx.save_for_backward(gradient_a, gradient_b)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient_a, gradient_b = ctx.saved_tensors
        return factor * gradient_a, factor * gradient_b, None, None
