"""SwAV's loss: each view predicts the assignment that another view of its image got.

Caron et al. (SwAV), *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*,
https://arxiv.org/abs/2006.09882, equations 1, 2 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import check_temperature


def swapped_prediction(
    scores: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float | Tensor = 0.1
) -> Tensor:
    """Returns −Σₖ qₖ log softmax(s/τ)ₖ, the mean over images and over all pairs of an assignment and another view.

    A view does not predict its own assignment. Assignments get no gradient whatever is passed; scores do. Nothing is
    normalized here: SwAV's scores are products of L2-normalized embeddings and prototypes. The mean is over this
    process's images; DDP's average makes it the mean over all.

    Args:
        scores: s, one (N, K) for each of V ≥ 2 views, images in the same order.
        assignments: q, one (N, K) for each of the first G views, 1 ≤ G ≤ V; rows sum to 1.
        temperature: τ > 0; a number, or a 0-dim tensor on the scores' device.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if shapes or counts are not as above, or a temperature given as a number is not positive.
    """
    check_swapped(scores, assignments)
    check_temperature(temperature)
    with torch.autocast(scores[0].device.type, enabled=False):
        dtype = torch.promote_types(scores[0].dtype, torch.float32)
        targets = [assignment.detach().to(dtype) for assignment in assignments]
        terms = []
        for view, own in enumerate(scores):
            others = [target for index, target in enumerate(targets) if index != view]
            if others:  # cross-entropy is linear in its target, so that each view needs only one
                terms.append(F.cross_entropy(own.to(dtype) / temperature, reduce(torch.add, others)))
        return torch.stack(terms).sum() / (len(targets) * (len(scores) - 1))


def check_swapped(scores: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Raises ValueError unless there are two or more views, targets for one or more of them, and one shape."""
    if len(scores) < 2 or not 1 <= len(targets) <= len(scores):
        found = f"{len(targets)} of {len(scores)}"
        raise ValueError(f"two or more views are needed, and targets for one or more of them, not for {found}")
    shapes = sorted({tuple(each.shape) for each in (*scores, *targets)})
    if len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ValueError(f"(N, K) tensors of one shape are needed, not {', '.join(map(str, shapes))}")
