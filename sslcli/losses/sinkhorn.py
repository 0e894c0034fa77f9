"""Sinkhorn's iterations: from scores to soft assignments that use every prototype equally, without gradient.

Caron et al. (SwAV), *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*,
https://arxiv.org/abs/2006.09882, section 3.1 and listing `sinkhorn` of appendix A; after Cuturi, *Sinkhorn Distances*,
https://arxiv.org/abs/1306.0895.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslcli.distributed import reduce_max, reduce_sum


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, *, used: Tensor | None = None) -> Tensor:
    """Returns the assignments Q: rows sum to 1, and with enough iterations columns to B/K each.

    Q starts as exp(scores/ε). Each iteration divides the columns by their sums, then the rows by theirs; so after any
    number of them the rows are exact. Columns are summed over all processes: on several the result is that of one
    process with the joined batch. The scores are taken as they are (SwAV's are cosines, which come normalised), in
    logarithms throughout, so that no size of them overflows and no prototype far from all samples becomes 0/0.

    Args:
        scores: (B, K), samples × prototypes, floating.
        epsilon: ε > 0; large means soft.
        iterations: at least 1.
        used: (B,) bool: rows that are False count in no column (a queue that is not full yet), and what is returned for
            them is the row's softmax alone. None: all rows count. Some row must be used.

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
        # Only the factors of rows and columns change, as logarithms: B + K numbers instead of B × K.
        outside = None if used is None else torch.zeros_like(log_q[:, 0]).masked_fill(~used, float("-inf"))
        rows = outside
        columns = _column_factors(log_q, rows)
        for _ in range(iterations - 1):
            rows = -torch.logsumexp(log_q + columns, dim=1)
            columns = _column_factors(log_q, rows if outside is None else rows + outside)
        return torch.softmax(log_q + columns, dim=1)


def _column_factors(log_q: Tensor, rows: Tensor | None) -> Tensor:
    """Minus the logarithm of each column's sum over all processes, the rows scaled first: (K,)."""
    scaled = log_q if rows is None else log_q + rows.unsqueeze(1)
    largest = reduce_max(scaled.amax(dim=0))
    return -(reduce_sum((scaled - largest).exp().sum(dim=0)).log() + largest)
