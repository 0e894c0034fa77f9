"""SimSiam's loss: the negative cosine of a prediction and a target that gets no gradient.

Chen & He, *Exploring Simple Siamese Representation Learning*, https://arxiv.org/abs/2011.10566, equation 1 and the
function D of algorithm 1.
"""

from __future__ import annotations

from torch import Tensor

from .rows import row_cosines


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
    return -row_cosines(p, z.detach()).mean()
