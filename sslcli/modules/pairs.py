"""What methods that compare views share: which view meets which, and the monitors of their pairs.

With small local views beside the global ones a local view meets the global ones only: Caron et al. (SwAV),
https://arxiv.org/abs/2006.09882, section 3.3. `pos_cos` and `neg_cos` are those of untitled-ai's workbench; under a
collapse both go to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch


def two_views(batch: Batch, method: str) -> tuple[Tensor, Tensor]:
    """Returns the images of the two views.

    Raises:
        UserError: if there are not two.
    """
    if len(batch.views) != 2:
        raise UserError(f"views: {method} needs exactly 2 views of an image, not {len(batch.views)}: set their counts")
    return batch.views[0].image, batch.views[1].image


def view_pairs(views: int, global_views: int) -> list[tuple[int, int]]:
    """Lists each two views of which one at least is global, each pair once: (0, 1) alone for two views.

    Args:
        views: how many there are.
        global_views: how many of them are global; these come first.
    """
    return [(a, b) for a in range(global_views) for b in range(a + 1, views)]


def target_pairs(views: int, global_views: int) -> list[tuple[int, int]]:
    """Lists (view, target) for every view and every *other* global view: (0, 1) and (1, 0) for two views.

    Args:
        views: how many there are.
        global_views: how many of them are global; these come first.
    """
    return [(view, target) for view in range(views) for target in range(global_views) if target != view]


@torch.no_grad()
def prediction_cosines(*directions: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Returns `pos_cos` and `neg_cos`, 0-dim float32, the mean over the directions.

    Positive: the same row of both; negative: any two different rows (0 for a batch of one, which has none). No N×N
    matrix is made: the sum over all pairs is the product of the two sums.

    Args:
        directions: pairs of (N, D), each compared with the other; they are L2-normalized here.
    """
    positive, negative = [], []
    for a, b in directions:
        with torch.autocast(a.device.type, enabled=False):
            a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
            same = (a * b).sum()
            n = len(a)
            positive.append(same / n)
            negative.append((a.sum(dim=0) @ b.sum(dim=0) - same) / max(n * (n - 1), 1))
    return {"pos_cos": torch.stack(positive).mean(), "neg_cos": torch.stack(negative).mean()}
