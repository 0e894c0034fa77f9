"""Sinkhorn's iterations: from scores to soft assignments that use every prototype equally, without gradient.

Caron et al. (SwAV), *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*,
https://arxiv.org/abs/2006.09882, section 3.1 and listing `sinkhorn` of appendix A; after Cuturi, *Sinkhorn Distances*,
https://arxiv.org/abs/1306.0895.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslcli.distributed import all_reduce_amax, all_reduce_sum


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    used: Tensor | None = None,
    rows: int | None = None,
) -> Tensor:
    """Returns the assignments Q: rows sum to 1, and with enough iterations columns to B/K each.

    Q starts as exp(scores/ε). Each iteration divides the columns by their sums, then the rows by theirs; so after any
    number of them the rows are exact. Columns are summed over all processes: on several the result is that of one
    process with the joined batch. The scores are taken as they are (SwAV's are cosines, which come normalized); no size
    of them overflows, and no prototype far from all samples becomes 0/0.

    Args:
        scores: (B, K), samples × prototypes, floating.
        epsilon: ε > 0; large means soft.
        iterations: at least 1.
        used: (B,) bool: rows that are False (a queue that is not full yet) count in no column and come back as zeros.
            None: all are used. At least one row over all processes must be.
        rows: how many of the first rows to return; None: all B.

    Returns:
        (B, K), or (rows, K); float32 regardless of autocast, float64 for float64 scores.

    Raises:
        ValueError: if a shape or a number is not as above.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (B, K), not {tuple(scores.shape)}")
    if used is not None and used.shape != scores.shape[:1]:
        raise ValueError(f"used must be ({scores.shape[0]},) for as many rows of scores, not {tuple(used.shape)}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, not {epsilon}")
    if iterations < 1:
        raise ValueError(f"at least one iteration is needed, not {iterations}")
    with torch.autocast(scores.device.type, enabled=False):
        # Q is diag(u)·M·diag(v) all along, so that an iteration is two products of M with a vector: rewriting Q each
        # time took 137 ms a view instead of 77 (SwAV's queue of 3,840 and 3,000 prototypes, one CPU thread). M has a 1
        # in every column and in every row, and no entry above it: no sum is near to 0. In place, since with a queue in
        # it the matrix is large, and allocating memory costs more than the arithmetic. `mv`, since TF32 affects `@`
        # only.
        matrix = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
        if used is not None:
            matrix.add_(torch.where(used, 0.0, float("-inf")).unsqueeze(1))
        matrix.sub_(all_reduce_amax(matrix.amax(dim=0)))
        lowest, smallest = torch.finfo(matrix.dtype).min, torch.finfo(matrix.dtype).tiny  # for rows that are not used
        largest = matrix.amax(dim=1).clamp_(min=lowest)
        matrix.sub_(largest.unsqueeze(1)).exp_()
        u = largest.exp_()
        v = all_reduce_sum(matrix.T.mv(u)).reciprocal_()
        for _ in range(iterations - 1):
            u = matrix.mv(v).clamp_(min=smallest).reciprocal_()
            v = all_reduce_sum(matrix.T.mv(u)).reciprocal_()
            # A common factor of v has no effect, and grows. Where prototypes cannot be used equally, parts of v would
            # go to 0: above this bound rows stay exact.
            v.div_(v.amax()).clamp_(min=1e-30)
        q = matrix[:rows] * v
        return q.div_(q.sum(dim=1, keepdim=True).clamp_(min=smallest))
