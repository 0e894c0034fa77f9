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

from .monitors import found_among
from .rows import check_negatives, check_pair, check_temperature, unit_rows


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


def contrast_logits(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what `info_nce` compares, cosine / τ: with the key (N,), and with the negatives (N, K).

    Apart, since a joined (N, 1 + K) would be a second copy of something large. Arguments, types and errors as for
    `info_nce`.
    """
    check_pair(query, key)
    check_temperature(temperature)
    check_negatives(query, negatives)
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
        # log(1 + e^x); beyond the threshold it is x in every bit of a float64.
        return F.softplus(others - positive, threshold=40.0).mean()


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
    return _batch_loss(_batch_logits(query, keys, temperature))


def batch_info_nce_and_metrics(
    query: Tensor, keys: Tensor, temperature: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `batch_info_nce` and its monitors, 0-dim without gradient; arguments and errors as for `batch_info_nce`.

    `contrast_top1`, `contrast_top5`: how often a query's key is found among all processes' (see `found_among`).
    `pos_cos`, `neg_cos`: mean cosine of the positive and of the negative pairs (0 where there is none).
    """
    logits = _batch_logits(query, keys, temperature)
    with torch.no_grad():
        positive = logits.diagonal(len(logits) * rank())
        count = max(logits.numel() - len(positive), 1)
        metrics = {
            **found_among(positive, logits, among=True),
            "pos_cos": positive.mean() * temperature,
            "neg_cos": (logits.sum() - positive.sum()) / count * temperature,
        }
    return _batch_loss(logits), metrics


def _batch_logits(query: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """Cosine / τ of this process's queries with all keys (N, N·world); query i's key is in column i + N·rank."""
    check_pair(query, keys)
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        everyone = all_gather(unit_rows(keys.detach()))
        return (unit_rows(query) / temperature) @ everyone.T


def _batch_loss(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device) + len(logits) * rank()
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits, labels)
