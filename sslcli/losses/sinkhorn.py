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
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, *, used: Tensor | None = None) -> Tensor:
    """Returns the assignments Q: rows sum to 1, and with enough iterations columns to B/K each.

    Q starts as exp(scores/ε). Each iteration divides the columns by their sums, then the rows by theirs; so after any
    number of them the rows are exact. Columns are summed over all processes: on several the result is that of one
    process with the joined batch. The scores are taken as they are (SwAV's are cosines, which come normalised); no size
    of them overflows, and no prototype far from all samples becomes 0/0.

    Args:
        scores: (B, K), samples × prototypes, floating.
        epsilon: ε > 0; large means soft.
        iterations: at least 1.
        used: (B,) bool: rows that are False (a queue that is not full yet) count in no column and come back as zeros.
            None: all are used. On some process some row must be.

    Returns:
        (B, K); float32 whatever the autocast, float64 for float64 scores.

    Raises:
        ValueError: if a shape or a number is not as said.
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
        log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
        # The first column sums are taken in logarithms. Then every column has an entry of 1/B or more and no row sums
        # to more than K, so that all later sums are far from 0 and the rest can go on without logarithms. In place
        # throughout: with a queue in it the matrix is large, and fresh memory costs more than the arithmetic.
        counted = log_q.clone() if used is None else log_q.masked_fill(~used.unsqueeze(1), float("-inf"))
        largest = all_reduce_amax(counted.amax(dim=0))
        sums = all_reduce_sum(counted.sub_(largest).exp_().sum(dim=0))
        q = log_q.sub_(largest + sums.log())
        q.sub_(q.amax(dim=1, keepdim=True)).exp_()
        q.div_(q.sum(dim=1, keepdim=True))
        if used is not None:
            q.mul_(used.unsqueeze(1))
        smallest = torch.finfo(q.dtype).tiny  # for rows of zeros, which are not used
        for _ in range(iterations - 1):
            q.div_(all_reduce_sum(q.sum(dim=0)))
            q.div_(q.sum(dim=1, keepdim=True).clamp(min=smallest))
        return q
