"""InfoNCE as MoCo uses it: find a query's key among the key and many negatives, or among a whole batch's keys; and
EqCo's loss, where few negatives are weighted as if there were many.

He et al. (MoCo), https://arxiv.org/abs/1911.05722, equation 1; Chen, Xie, He (MoCo v3),
https://arxiv.org/abs/2104.02057, equation 1 and algorithm 1; Dwibedi et al. (NNCLR), https://arxiv.org/abs/2104.14548;
Zhu et al. (EqCo), https://arxiv.org/abs/2010.01929.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import all_gather, rank

from .monitors import found_among
from .rows import check_negatives, check_pair, check_temperature, unit_rows


def info_nce(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor, alpha: float | None = None
) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + w·Σ e^{l₋}) ), l = cos/τ, the mean over the N queries.

    w = 1 is InfoNCE. With α it is α/K, EqCo's loss: the same as a margin of τ·log(α/K) that the positive's cosine must
    have over the negatives'.

    All three are L2-normalized here (a row of zeros has cosine 0 with everything). Gradient flows to whichever of them
    requires it: MoCo's keys and queue come without, which is the method's doing. The mean is over this process's
    rows; with the same negatives everywhere DDP's average makes it the mean over all.

    Args:
        query: (N, D), floating.
        key: (N, D), row i the positive of query i.
        negatives: (K, D) with K ≥ 1, the negatives of every query.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        alpha: α > 0, how many negatives there should seem to be; None: as many as there are.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes don't fit together, or a number is not positive.
    """
    check_pair(query, key)
    check_temperature(temperature)
    check_negatives(query, negatives)
    weight = negative_weight(alpha, len(negatives))
    with torch.autocast(query.device.type, enabled=False):
        q = unit_rows(query) / temperature
        # Not joined: that would be a second copy of the logits.
        positive, negative = (q * unit_rows(key)).sum(dim=1), q @ unit_rows(negatives).T
    return contrast_loss(positive, negative, weight)


def negative_weight(alpha: float | None, count: int) -> float:
    """Returns w = α/K of EqCo for K = `count`, or 1 without α. Raises ValueError if α is not positive."""
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    return 1.0 if alpha is None else alpha / max(count, 1)


def contrast_loss(positive: Tensor, negative: Tensor, weight: float) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + w·Σ e^{l₋}) ), the mean over the N queries: 0-dim.

    Args:
        positive: (N,), l₊.
        negative: (N, K), l₋.
        weight: w > 0; see `negative_weight`.
    """
    with torch.autocast(positive.device.type, enabled=False):
        others = negative.logsumexp(dim=1) + math.log(weight)
        # log(1 + e^x); beyond the threshold it is x in every bit of a float64.
        return F.softplus(others - positive, threshold=40.0).mean()


def batch_info_nce(
    query: Tensor, keys: Tensor, temperature: float | Tensor, *, keys_have_gradient: bool = False
) -> Tensor:
    """Returns −log( e^{qᵢ·kᵢ/τ} / Σⱼ e^{qᵢ·kⱼ/τ} ), j over the keys of all processes; the mean over the N queries.

    One direction, without MoCo v3's factor 2τ. Both inputs are L2-normalized here. MoCo v3's keys come from a momentum
    encoder and get no gradient, whatever is passed; NNCLR's are predictions, and have one through the gather. The mean
    over the processes is the value of one process with the joined batch. A single key has loss 0.

    Args:
        query: (N, D), floating; N is the same on every process.
        keys: (N, D), row i the positive of query i.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        keys_have_gradient: whether it flows to the keys too.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or a temperature given as a number is not positive.
    """
    return batch_info_nce_and_metrics(query, keys, temperature, keys_have_gradient=keys_have_gradient)[0]


def batch_info_nce_and_metrics(
    query: Tensor, keys: Tensor, temperature: float | Tensor, *, keys_have_gradient: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `batch_info_nce` and its monitors, 0-dim without gradient; arguments and errors as for `batch_info_nce`.

    `contrast_top1`, `contrast_top5`: how often a query's key is found among all processes' (see `found_among`).
    `pos_cos`, `neg_cos`: mean cosine of the positive and of the negative pairs (0 where there is none).
    """
    check_pair(query, keys)
    check_temperature(temperature)
    with torch.autocast(query.device.type, enabled=False):
        k = all_gather(unit_rows(keys), gradient=True) if keys_have_gradient else all_gather(unit_rows(keys.detach()))
        logits = (unit_rows(query) / temperature) @ k.T  # N×N·world
        own = len(logits) * rank()  # query i's key is in column own + i
        with torch.no_grad():  # before the loss, which keeps a matrix of the same size for its gradient
            positive = logits.diagonal(own)
            count = max(logits.numel() - len(positive), 1)
            metrics = {
                **found_among(positive, logits, among=True),
                "pos_cos": positive.mean() * temperature,
                "neg_cos": (logits.sum() - positive.sum()) / count * temperature,
            }
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device) + own), metrics
