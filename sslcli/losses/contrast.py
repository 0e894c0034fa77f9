"""Contrast in two parts that combine freely: which pairs a query is compared with (the batch's or given negatives), and
the loss over these pairs (cross-entropy, binary cross-entropy).

The parts of MoCo, https://arxiv.org/abs/1911.05722, SimCLR, https://arxiv.org/abs/2002.05709, and EqCo,
https://arxiv.org/abs/2010.01929, so that one can be turned into another one step at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import all_gather, rank

from .info_nce import contrast_loss
from .monitors import found_among
from .rows import check_negatives, check_pair, check_temperature, in_full_precision, unit_rows


class PairLogits(NamedTuple):
    """What N queries are compared with, l = q·k/τ.

    Attributes:
        positive: (N,), l₊ of each query and its key.
        negative: (N, C), l₋; −∞ in a column that is no negative of the row.
        K: how many negatives each query has: C less the columns with −∞.
        metrics: `contrast_top1`, `contrast_top5` (see `found_among`), `pos_cos` and `neg_cos`, the mean cosines (0
            where there is no pair); 0-dim, without gradient.
    """

    positive: Tensor
    negative: Tensor
    K: int
    metrics: dict[str, Tensor]


def pair_logits(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor,
    *,
    negatives: Tensor | None = None,
    own: Tensor | None = None,
    unit_sphere: bool = True,
    gather: bool = True,
) -> PairLogits:
    """Compares each query with its key, and with given negatives or the keys of the batch's other images.

    Without `negatives`, those of a query are all rows of `key` but its own (N − 1, of the other view), and with `own`
    all rows of that but its own as well (2N − 2 in all). With SimCLR's inputs, where keys are the queries themselves,
    the mean of the cross-entropies of (z₁, z₂, own=z₁) and (z₂, z₁, own=z₂) is NT-Xent.

    Gradient flows to whichever input requires it. The mean of a loss over the processes, and the gradients averaged as
    DDP does, are those of one process with the joined batch: with `gather`, or with the same negatives everywhere.

    Args:
        query: (N, D), floating; N is the same on every process.
        key: (N, D), row i the positive of query i: the other view's.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        negatives: (K, D), the negatives of every query; K may be 0. None: the batch's.
        own: (N, D), keys of the view that the queries are from; None: not compared with. Unused with `negatives`.
        unit_sphere: whether all are L2-normalized here; else they are compared as they are.
        gather: whether other processes' keys are negatives too. Unused with `negatives`.

    Raises:
        ValueError: if the shapes don't fit together, or a temperature given as a number is not positive.
    """
    check_temperature(temperature)
    for keys in (key,) if own is None else (key, own):
        check_pair(query, keys)
    if 0 in query.shape:
        raise ValueError(f"queries (N, D) with a row and a dimension are needed, not {tuple(query.shape)}")
    if negatives is not None:
        check_negatives(query, negatives, least=0)
    with torch.autocast(query.device.type, enabled=False):
        q, k = sphere_rows(query, unit_sphere), sphere_rows(key, unit_sphere)
        if negatives is not None:
            sources, everyone = [k], sphere_rows(negatives, unit_sphere)  # K×D
            scaled, count = q / temperature, len(everyone)
            positive, logits = (scaled * k).sum(dim=1), scaled @ everyone.T
        else:
            sources = [k] if own is None else [k, sphere_rows(own, unit_sphere)]
            here = torch.cat(sources)
            everyone = all_gather(here, gradient=here.requires_grad) if gather else here  # (1 or 2)·N·world×D
            logits, start = (q / temperature) @ everyone.T, len(here) * rank() if gather else 0
            positive = logits.diagonal(start).clone()
            for index in range(len(sources)):
                logits.diagonal(start + index * len(q)).fill_(float("-inf"))
            count = len(everyone) - len(sources)
        with torch.no_grad():
            u, rows, *others = [x if unit_sphere else unit_rows(x) for x in (q, everyone, *sources)]
            same = torch.stack([(u * other).sum() for other in others])
            # The sum over all pairs is the product of the two sums, so that no N×C matrix of cosines is needed.
            total = u.sum(dim=0) @ rows.sum(dim=0)
            if negatives is None:
                total = total - same.sum()
            # The sum over no pairs is not exactly 0: rounding remains.
            neg_cos = total / (len(u) * count) if count else torch.zeros_like(total)
            found = found_among(positive, logits, among=False)
        return PairLogits(positive, logits, count, {**found, "pos_cos": same[0] / len(u), "neg_cos": neg_cos})


def contrast_ce(pairs: PairLogits, weight: float = 1.0) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + w·Σ e^{l₋}) ), the mean over the queries; without negatives it is 0.

    w = 1 is InfoNCE; α/K is EqCo's margin of τ·log(α/K) (see `negative_weight`). With given negatives it equals
    `info_nce`, on the batch `nt_xent` (see `pair_logits`).

    Args:
        pairs: what is compared.
        weight: w > 0.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 embeddings.
    """
    if pairs.K == 0:
        return (pairs.positive * 0).mean()
    return contrast_loss(pairs.positive, pairs.negative, weight)


def contrast_bce(pairs: PairLogits, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Returns −log σ(l₊) − Σ log(1 − σ(l₋)) over the 1 + K pairs of a query, the mean over the queries: each pair
    counts by itself, as in untitled-ai's code. Without negatives it is the mean of −log σ(l₊).

    Args:
        pairs: what is compared.
        reduction: `mean` divides by 1 + K.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 embeddings.
    """
    with torch.autocast(pairs.positive.device.type, enabled=False):
        # Beyond the threshold log(1 + e^x) is x in every bit of a float64.
        same = F.softplus(-pairs.positive, threshold=40.0).sum()
        others = F.softplus(pairs.negative, threshold=40.0).sum()
        return (same + others) / (len(pairs.positive) * (1 if reduction == "sum" else 1 + pairs.K))


def contrast_ip(pairs: PairLogits) -> Tensor:
    """Returns the mean over the queries of (1 − l₊) + Σ (1 + l₋), for pairs without a temperature (τ = 1).

    untitled-ai's loss `ip`. Without negatives it is half of BYOL's; each negative pair counts as much as the positive.

    Args:
        pairs: what is compared.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 embeddings.
    """
    with torch.autocast(pairs.positive.device.type, enabled=False):
        others = torch.where(pairs.negative.isinf(), 0.0, 1 + pairs.negative).sum()
        return (1 - pairs.positive).mean() + others / len(pairs.positive)


def sphere_rows(x: Tensor, unit_sphere: bool) -> Tensor:
    """Returns the rows of (N, D) in float32 at least, with `unit_sphere` scaled to length 1; zeros stay zeros."""
    return unit_rows(x) if unit_sphere else in_full_precision(x)
