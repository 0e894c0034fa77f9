"""SimSiam's loss: the negative cosine of a prediction and a target that gets no gradient.

Chen & He, *Exploring Simple Siamese Representation Learning*, https://arxiv.org/abs/2011.10566, equation 1 and the
function D of algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Returns the cosine of each row of `a` with the same row of `b`: (N,), in float32 at least.

    A row of zeros has cosine 0 with everything.

    Args:
        a: (N, D), any floating type.
        b: (N, D).
    """
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        return (F.normalize(a.to(dtype), dim=1) * F.normalize(b.to(dtype), dim=1)).sum(dim=1)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Returns −cos(p, sg z), the mean over the rows: a 0-dim tensor in [−1, 1], float32 at least.

    The stop-gradient sg is part of it, as in the paper's algorithm 1: without it the network collapses. Both inputs are
    L2-normalized here. The mean is over this process's rows; DDP's average makes it the mean over all.

    Args:
        p: (N, D) predictions.
        z: (N, D) targets.
    """
    return -row_cosines(p, z.detach()).mean()
