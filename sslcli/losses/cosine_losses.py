"""SimSiam's and BYOL's losses of the cosine of a prediction and a target that gets no gradient.

Chen & He (SimSiam), https://arxiv.org/abs/2011.10566, equation 1 and the function D of algorithm 1; Grill et al.
(BYOL), https://arxiv.org/abs/2006.07733, equation 2.
"""

from __future__ import annotations

from torch import Tensor

from .rows import check_pair, unit_rows


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Returns −cos(p, sg z), the mean over the rows: a 0-dim tensor in [−1, 1], float32 at least.

    The stop-gradient sg is part of it, as in the paper's algorithm 1: without it the network collapses. Both inputs are
    L2-normalized here. The mean is over this process's rows; DDP's average makes it the mean over all.

    Args:
        p: (N, D) predictions.
        z: (N, D) targets.

    Raises:
        ValueError: if the shapes are not two equal (N, D).
    """
    return -_cosines(p, z).mean()


def byol_regression(p: Tensor, z: Tensor) -> Tensor:
    """Returns ‖p/‖p‖ − sg z/‖z‖‖² = 2 − 2·cos(p, sg z), the mean over the rows: 0-dim in [0, 4], float32 at least.

    One direction; BYOL sums it over both. The rest is as for `negative_cosine`.

    Args:
        p: (N, D) predictions of the online network.
        z: (N, D) projections of the target network.

    Raises:
        ValueError: if the shapes are not two equal (N, D).
    """
    return (2 - 2 * _cosines(p, z)).mean()


def _cosines(p: Tensor, z: Tensor) -> Tensor:
    check_pair(p, z)
    return (unit_rows(p) * unit_rows(z.detach())).sum(dim=1)
