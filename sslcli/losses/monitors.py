"""The monitors that losses report beside their value: cosines of pairs, and how often a positive is found.

`pos_cos`, `neg_cos`, `contrast_top1` and `contrast_top5` are those of untitled-ai's workbench; in a collapse both
cosines go to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rows import unit_rows


@torch.no_grad()
def mean_cosines(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Returns `pos_cos` and `neg_cos`, 0-dim float32 without gradient, the mean over the pairs of views.

    Positive: the same row of both; negative: any two different rows (0 for a batch of one, which has none). No N×N
    matrix is needed: the sum over all pairs of rows is the product of the two sums.

    Args:
        pairs: two (N, D) each; they are L2-normalized here.
    """
    positive, negative = [], []
    for a, b in pairs:
        with torch.autocast(a.device.type, enabled=False):
            a, b, n = unit_rows(a.float()), unit_rows(b.float()), len(a)
            same = (a * b).sum()
            positive.append(same / n)
            negative.append((a.sum(dim=0) @ b.sum(dim=0) - same) / max(n * (n - 1), 1))
    return {"pos_cos": torch.stack(positive).mean(), "neg_cos": torch.stack(negative).mean()}


@torch.no_grad()
def class_cosines(z: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Returns `pos_cos` and `neg_cos`, the mean cosine of any two embeddings of one label (of one image without
    labels), and of any two others, within this process's batch: 0-dim without gradient, float32 at least; 0 where there
    is no such pair.

    Args:
        z: (N, V, D) embeddings of V views of N images; they are L2-normalized here.
        labels: (N,) integers, or None.
    """
    images, views = z.shape[:2]
    with torch.autocast(z.device.type, enabled=False):
        u = unit_rows(z)
        # Sums over an image's views come first, so that the largest product is N×N and not VN×VN.
        sums = u.sum(dim=1)  # N×D
        total = sums.sum(dim=0).square().sum()
        if labels is None:
            alike, pairs = sums.square().sum(), z.new_full((), images * views**2, dtype=torch.int64)
        else:
            same = labels[:, None] == labels
            alike = torch.where(same, sums @ sums.T, 0).sum()
            pairs = same.sum() * views**2
        positives = pairs - images * views  # a pair has two different embeddings
        negatives = (images * views) ** 2 - pairs
        pos_cos = (alike - u.square().sum()) / positives.clamp_min(1)
        neg_cos = (total - alike) / negatives.clamp_min(1)
        # The sum over no pairs is not exactly 0: rounding remains.
        return {
            "pos_cos": torch.where(positives > 0, pos_cos, 0).to(u.dtype),
            "neg_cos": torch.where(negatives > 0, neg_cos, 0).to(u.dtype),
        }


@torch.no_grad()
def found_among(positive: Tensor, candidates: Tensor, *, among: bool) -> dict[str, Tensor]:
    """Returns `contrast_top1` and `contrast_top5`: the share of rows whose positive is the best, or one of the best
    five, of all candidates; 0-dim. A candidate that ties with the positive, as all do in a collapse, ranks before it.

    Args:
        positive: (N,) the positives' logits.
        candidates: (N, C) the candidates' logits; −∞ in a column that is no candidate of the row.
        among: whether the positive is one of the candidates.
    """
    better = (candidates >= positive.unsqueeze(1)).sum(dim=1) - int(among)
    return {f"contrast_top{k}": (better < k).to(positive.dtype).mean() for k in (1, 5)}


def mean_over(results: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the mean of several losses with metrics (of pairs of views, say), and of each metric: 0-dim each.

    Args:
        results: loss and metrics, all with the same metrics; at least one.
    """
    losses, metrics = zip(*results, strict=True)
    return torch.stack(losses).mean(), {
        name: torch.stack([each[name] for each in metrics]).mean() for name in metrics[0]
    }
