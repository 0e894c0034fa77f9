"""Contrast taken apart: which pairs a query is compared with (a queue, or the batch), and what is made of them
(cross-entropy, binary cross-entropy), each to be combined with the other.

The parts of MoCo, https://arxiv.org/abs/1911.05722, SimCLR, https://arxiv.org/abs/2002.05709, and EqCo,
https://arxiv.org/abs/2010.01929; put together so that one turns into another one step at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import all_gather, rank

from .info_nce import contrast_loss, found_among, unit_rows


class Contrast(NamedTuple):
    """What N queries are compared with, l = q·k/τ.

    Attributes:
        positive: (N,), l₊ of each query and its key.
        negative: (N, C), l₋; −∞ in a column that is no negative of the row.
        K: how many negatives each query has: C less the columns with −∞.
        pos_cos: mean cosine of the positive pairs, 0-dim, without gradient.
        neg_cos: mean cosine of the negative pairs, likewise; 0 where there is none.
    """

    positive: Tensor
    negative: Tensor
    K: int
    pos_cos: Tensor
    neg_cos: Tensor


def queue_contrast(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor, *, unit_sphere: bool = True
) -> Contrast:
    """Compares each query with its key and with the same K negatives for all.

    Gradient flows to whichever of the three requires it. The mean of a loss over the processes is that of one process
    with the joined batch if the negatives are the same everywhere.

    Args:
        query: (N, D), floating.
        key: (N, D), row i the positive of query i.
        negatives: (K, D); K may be 0.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        unit_sphere: whether all three are L2-normalized here; else they are compared as they are.

    Raises:
        ValueError: if the shapes don't fit together, or a temperature given as a number is not positive.
    """
    _check(query, key, temperature)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(f"negatives (K, {query.shape[1]}) are needed, not {tuple(negatives.shape)}")
    with torch.autocast(query.device.type, enabled=False):
        q, k, others = (sphere_rows(x, unit_sphere) for x in (query, key, negatives))
        scaled = q / temperature
        cosines = _mean_cosines(q, [k], others, len(others), unit_sphere, positives_among_all=False)
        return Contrast((scaled * k).sum(dim=1), scaled @ others.T, len(others), *cosines)


def batch_contrast(
    query: Tensor,
    key: Tensor,
    own: Tensor | None,
    temperature: float | Tensor,
    *,
    unit_sphere: bool = True,
    gather: bool = True,
) -> Contrast:
    """Compares each query with its key and with the keys of the batch's other images.

    Negatives of a query are all rows of `key` but its own (N − 1 of the other view), and with `own` all rows of that
    but its own as well (2N − 2 in all). Gradient flows to whichever of the three requires it. With SimCLR's inputs,
    where keys are the queries themselves, the mean of the cross-entropies of (z₁, z₂, z₁) and (z₂, z₁, z₂) is NT-Xent.

    With `gather` the rows of all processes are compared (with gradient where they require it): the mean of a loss over
    the processes, and the gradients averaged as DDP does, are those of one process with the joined batch.

    Args:
        query: (N, D), floating; N is the same on every process.
        key: (N, D), row i the positive of query i: the other view's.
        own: (N, D), keys of the view that the queries are from; None: not compared with.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        unit_sphere: whether all three are L2-normalized here; else they are compared as they are.
        gather: whether other processes' keys are negatives too.

    Raises:
        ValueError: if the shapes are not equal (N, D), or a temperature given as a number is not positive.
    """
    _check(query, key, temperature)
    if own is not None:
        _check(query, own, temperature)
    with torch.autocast(query.device.type, enabled=False):
        q = sphere_rows(query, unit_sphere)
        sources = [sphere_rows(source, unit_sphere) for source in (key, own) if source is not None]
        here = torch.cat(sources)
        everyone = all_gather(here, gradient=here.requires_grad) if gather else here
        logits = (q / temperature) @ everyone.T
        start = len(here) * rank() if gather else 0
        positive = logits.diagonal(start).clone()
        for place in range(len(sources)):
            logits.diagonal(start + place * len(q)).fill_(float("-inf"))
        count = len(everyone) - len(sources)
        return Contrast(positive, logits, count, *_mean_cosines(q, sources, everyone, count, unit_sphere))


def contrast_ce(contrast: Contrast, alpha: float | None = None) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + w·Σ e^{l₋}) ), the mean over the queries; without negatives it is 0.

    w = 1 is InfoNCE; with α it is α/K, EqCo's margin of τ·log(α/K), K the negatives really used. On a queue it equals
    `info_nce` and `eqco`, on the batch `nt_xent` (see `batch_contrast`), each times 1. What is L2-normalized is said
    where the contrast is made.

    Args:
        contrast: what is compared.
        alpha: α > 0, how many negatives there should seem to be; None: as many as there are.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 embeddings.

    Raises:
        ValueError: if α is not positive.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    if contrast.K == 0:
        return (contrast.positive * 0).mean()
    return contrast_loss(contrast.positive, contrast.negative, 1.0 if alpha is None else alpha / contrast.K)


def contrast_bce(contrast: Contrast) -> Tensor:
    """Returns the mean over all N·(1 + K) pairs of −log σ(l₊) and −log(1 − σ(l₋)): each pair is judged alone.

    The positive pairs are one in 1 + K, as in untitled-ai's code: with many negatives their gradient is small, and a
    loss factor is wanted. Without negatives it is the mean of −log σ(l₊). What is L2-normalized is said where the
    contrast is made.

    Args:
        contrast: what is compared.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 embeddings.
    """
    with torch.autocast(contrast.positive.device.type, enabled=False):
        # Beyond the threshold log(1 + e^x) is x to the last bit of a float64.
        same = F.softplus(-contrast.positive, threshold=40.0).sum()
        others = F.softplus(contrast.negative, threshold=40.0).sum()
        return (same + others) / (len(contrast.positive) * (1 + contrast.K))


def inner_product(query: Tensor, key: Tensor, *, unit_sphere: bool = True) -> Tensor:
    """Returns 1 − q·k, the mean over the rows: no negatives, no temperature.

    Twice this is `byol_regression`, and this less 1 is `negative_cosine`, except that here gradient flows to whichever
    of the two requires it: stopping it is the caller's doing. The mean is over this process's rows; DDP's average makes
    it the mean over all.

    Args:
        query: (N, D), floating.
        key: (N, D), row i the positive of query i.
        unit_sphere: whether both are L2-normalized here, which keeps the loss in [0, 2]; else it has no lower bound.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D).
    """
    _check(query, key, 1.0)
    with torch.autocast(query.device.type, enabled=False):
        return 1 - (sphere_rows(query, unit_sphere) * sphere_rows(key, unit_sphere)).sum(dim=1).mean()


@torch.no_grad()
def contrast_monitors(contrast: Contrast) -> dict[str, Tensor]:
    """Returns how well the positives are found among 1 + K, all 0-dim and without gradient.

    `contrast_top1` and `contrast_top5`: see `found_among`. `pos_cos`, `neg_cos`: the mean cosines.
    """
    return {
        **found_among(contrast.positive, contrast.negative, among=False),
        "pos_cos": contrast.pos_cos,
        "neg_cos": contrast.neg_cos,
    }


def sphere_rows(x: Tensor, unit_sphere: bool) -> Tensor:
    """Returns the rows of (N, D) in float32 at least, brought to length 1 if so asked; rows of zeros stay zeros."""
    return unit_rows(x) if unit_sphere else x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def _mean_cosines(
    q: Tensor, excluded: list[Tensor], everyone: Tensor, count: int, on_sphere: bool, positives_among_all: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean cosine of q with the first of `excluded`, and with `everyone` less `excluded`.

    The sum over all pairs is the product of the two sums, so that no N×C matrix of cosines is needed.
    """
    u, rows, *others = [q, everyone, *excluded] if on_sphere else [unit_rows(x) for x in (q, everyone, *excluded)]
    own = torch.stack([(u * other).sum() for other in others])
    total = u.sum(dim=0) @ rows.sum(dim=0)
    if positives_among_all:
        total = total - own.sum()
    # What is left of a sum over no pairs is rounding.
    return own[0] / len(u), total / (len(u) * count) if count else torch.zeros_like(total)


def _check(query: Tensor, key: Tensor, temperature: float | Tensor) -> None:
    if query.ndim != 2 or query.shape != key.shape or 0 in query.shape:
        raise ValueError(
            f"queries and keys of equal shape (N, D) are needed, not {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
