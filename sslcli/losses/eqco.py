"""EqCo's loss: InfoNCE whose few negatives are weighted as if there were many.

Zhu et al., *EqCo: Equivalent Rules for Self-supervised Contrastive Learning*, https://arxiv.org/abs/2010.01929.
"""

from __future__ import annotations

from torch import Tensor

from .info_nce import contrast_logits, contrast_loss


def eqco(query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor, alpha: float = 65536.0) -> Tensor:
    """Returns −log( e^{l₊} / (e^{l₊} + (α/K)·Σ e^{l₋}) ), l = cos/τ, the mean over the N queries.

    The same as a margin of τ·log(α/K) that the positive's cosine must have over the negatives'. With α = K it is
    `info_nce`. All three are L2-normalized here; gradient flows to whichever of them requires it.

    Args:
        query: (N, D), floating.
        key: (N, D), row i the positive of query i.
        negatives: (K, D) with K ≥ 1, those really used.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        alpha: α > 0, how many negatives there should seem to be.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes don't fit together, or a number is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    return contrast_loss(*contrast_logits(query, key, negatives, temperature), alpha / len(negatives))
