"""BYOL's loss: the squared distance of a normalized prediction and a normalized target that gets no gradient.

Grill et al., *Bootstrap Your Own Latent*, https://arxiv.org/abs/2006.07733, equation 2.
"""

from __future__ import annotations

from torch import Tensor

from .rows import row_cosines


def byol_regression(p: Tensor, z: Tensor) -> Tensor:
    """Returns ‖p/‖p‖ − sg z/‖z‖‖² = 2 − 2·cos(p, sg z), the mean over the rows: 0-dim in [0, 4], float32 at least.

    One direction; BYOL sums it over both. The target comes from the momentum encoder and gets no gradient whatever is
    passed. Both inputs are L2-normalized here. The mean is over this process's rows; DDP's average makes it the mean
    over all.

    Args:
        p: (N, D) predictions of the online network.
        z: (N, D) projections of the target network.

    Raises:
        ValueError: if the shapes are not two equal (N, D).
    """
    return (2 - 2 * row_cosines(p, z.detach())).mean()
