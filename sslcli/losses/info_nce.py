"""InfoNCE as MoCo uses it: find a query's key among the key and many negatives, or among a whole batch's keys.

He et al. (MoCo), https://arxiv.org/abs/1911.05722, equation 1; Chen, Xie, He (MoCo v3),
https://arxiv.org/abs/2104.02057, equation 1 and algorithm 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import all_gather, rank


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns −log( e^{q·k₊/τ} / (e^{q·k₊/τ} + Σ_{k₋} e^{q·k₋/τ}) ), the mean over the N queries.

    All three are L2-normalized here (a row of zeros has cosine 0 with everything). Gradient flows to whichever of them
    requires it: MoCo's keys and queue come without, which is the method's doing. The mean is over this process's
    rows; with the same negatives everywhere DDP's average makes it the mean over all.

    Args:
        query: (N, D), floating.
        key: (N, D), row i the positive of query i.
        negatives: (K, D) with K ≥ 1, the negatives of every query.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes don't fit together, or a temperature given as a number is not positive.
    """
    return contrast_loss(*contrast_logits(query, key, negatives, temperature))


def batch_info_nce(query: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns −log( e^{qᵢ·kᵢ/τ} / Σⱼ e^{qᵢ·kⱼ/τ} ), j over the keys of all processes; the mean over the N queries.

    One direction, without MoCo v3's factor 2τ. Both inputs are L2-normalized here. The keys come from a momentum
    encoder and get no gradient, whatever is passed. The mean over the processes is the value of one process with the
    joined batch. A single key has loss 0.

    Args:
        query: (N, D), floating; N is the same on every process.
        keys: (N, D), row i the positive of query i.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or a temperature given as a number is not positive.
    """
    return batch_contrast_loss(batch_logits(query, keys, temperature))


def contrast_logits(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what `info_nce` compares, cosine / τ: with the key (N,), and with the negatives (N, K).

    Apart, since a joined (N, 1 + K) would be a second copy of something large. Arguments, types and errors as for
    `info_nce`.
    """
    _check(query, key, temperature)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) < 1:
        raise ValueError(
            f"negatives (K, {query.shape[1]}) with K of 1 or more are needed, not {tuple(negatives.shape)}"
        )
    with torch.autocast(query.device.type, enabled=False):
        q = unit_rows(query) / temperature
        return (q * unit_rows(key)).sum(dim=1), q @ unit_rows(negatives).T


def contrast_loss(positive: Tensor, negative: Tensor, negative_weight: float = 1.0) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + w·Σ e^{l₋}) ), the mean over the N queries: 0-dim.

    Args:
        positive: (N,), l₊.
        negative: (N, K), l₋.
        negative_weight: w > 0; 1 for InfoNCE, α/K for EqCo.
    """
    with torch.autocast(positive.device.type, enabled=False):
        others = negative.logsumexp(dim=1) + math.log(negative_weight)
        # log(1 + e^x); beyond the threshold it is x to the last bit of a float64.
        return F.softplus(others - positive, threshold=40.0).mean()


def batch_logits(query: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns what `batch_info_nce` compares: cosine / τ of this process's queries with all keys, (N, N·world).

    Query i's positive stands in column i + N·rank. Arguments, types and errors as for `batch_info_nce`.
    """
    _check(query, keys, temperature)
    with torch.autocast(query.device.type, enabled=False):
        everyone = all_gather(unit_rows(keys.detach()))
        return (unit_rows(query) / temperature) @ everyone.T


def batch_contrast_loss(logits: Tensor) -> Tensor:
    """Returns the cross-entropy of `batch_logits`, the mean over the N queries: 0-dim."""
    count = len(logits)
    labels = torch.arange(count, device=logits.device) + count * rank()
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits, labels)


@torch.no_grad()
def contrast_metrics(positive: Tensor, candidates: Tensor, temperature: float, *, among: bool) -> dict[str, Tensor]:
    """Returns how well the positives are found, all 0-dim and without gradient.

    `contrast_top1` and `contrast_top5`: see `found_among`. `pos_cos` and `neg_cos`: the mean cosine of the positive and
    of the negative pairs (0 where there is none).

    Args:
        positive: (N,) the positives' cosine / τ.
        candidates: (N, C) the candidates'.
        temperature: τ.
        among: whether the positive is one of the candidates' columns.
    """
    own = int(among)
    count = max(candidates.numel() - own * len(positive), 1)
    return {
        **found_among(positive, candidates, among=among),
        "pos_cos": positive.mean() * temperature,
        "neg_cos": (candidates.sum() - own * positive.sum()) / count * temperature,
    }


@torch.no_grad()
def found_among(positive: Tensor, candidates: Tensor, *, among: bool) -> dict[str, Tensor]:
    """Returns `contrast_top1` and `contrast_top5`: the share of queries whose positive is the best, or one of the best
    five, of all candidates; 0-dim. Who ties with the positive, as all do in a collapse, stands before it.

    Args:
        positive: (N,) the positives' cosine / τ.
        candidates: (N, C) the candidates'; −∞ in a column that is none for the row.
        among: whether the positive is one of the candidates' columns.
    """
    better = (candidates >= positive.unsqueeze(1)).sum(dim=1) - int(among)
    return {f"contrast_top{k}": (better < k).to(positive.dtype).mean() for k in (1, 5)}


def unit_rows(x: Tensor) -> Tensor:
    """Returns the rows of (N, D) brought to length 1, in float32 at least; rows of zeros stay zeros."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _check(query: Tensor, key: Tensor, temperature: float | Tensor) -> None:
    if query.ndim != 2 or query.shape != key.shape:
        raise ValueError(
            f"queries and keys of equal shape (N, D) are needed, not {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
