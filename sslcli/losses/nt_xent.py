"""NT-Xent, the contrastive loss of SimCLR (Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive
Learning of Visual Representations*, ICML 2020, arXiv:2002.05709, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.distributed import all_gather, rank

from .info_nce import found_among


def nt_xent(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns the normalized temperature-scaled cross-entropy of two views, averaged over the 2N anchors.

    With u the L2-normalized embeddings (the inputs need not be normalized) and j(i) the other view of i's image:

        loss = mean over i of  −log( exp(uᵢ·u_j(i)/τ) / Σ_{k≠i} exp(uᵢ·u_k/τ) )

    Over several processes k runs over all processes' embeddings, gathered with gradient, and the anchors are one's own:
    the mean of the processes' losses, and their gradients averaged as DDP does, are those of one process with the
    joined batch. A batch of one image has no negatives and its loss is 0.

    Args:
        z1: (N, D) embeddings of the first views, floating; N is the same on every process.
        z2: (N, D) embeddings of the second views, in the same order.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.

    Returns:
        0-dim; float32 whatever the autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or a temperature given as a number is not positive.
    """
    return twin_loss(*twin_logits(z1, z2, temperature))


def twin_logits(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `nt_xent` compares: cosine / τ of this process's 2N anchors with all embeddings, (2N, 2N·world), −∞
    where an anchor meets itself; and the column of each anchor's twin, (2N,).

    Arguments, types and errors as for `nt_xent`.
    """
    _check(z1, z2)
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    with torch.autocast(z1.device.type, enabled=False):
        own = _unit_vectors(z1, z2)  # 2N×D
        everyone = all_gather(own, gradient=True)  # 2NW×D
        # Dividing the 2N×D factor is cheaper than dividing the 2N×2NW product.
        logits = (own / temperature) @ everyone.T
        anchors, offset = own.shape[0], own.shape[0] * rank()
        logits.diagonal(offset).fill_(float("-inf"))
        return logits, torch.arange(anchors, device=own.device).roll(anchors // 2) + offset


def twin_loss(logits: Tensor, twins: Tensor) -> Tensor:
    """Returns the cross-entropy of `twin_logits`, the mean over the 2N anchors: 0-dim."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits, twins)


@torch.no_grad()
def twins_found(logits: Tensor, twins: Tensor) -> dict[str, Tensor]:
    """Returns `contrast_top1` and `contrast_top5` of `twin_logits`: how many twins are found among 1 + (2N·world − 2).

    0-dim, without gradient; see `found_among`.
    """
    return found_among(logits.gather(1, twins.unsqueeze(1)).squeeze(1), logits, among=True)


@torch.no_grad()
def pair_cosines(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean cosine of the positive and of the negative pairs in this process's batch, for monitoring.

    A negative pair is any two of the 2N embeddings that stem from different images. Their sum has a closed form,
    |Σu|² − Σ|u|² − 2·Σ u₁·u₂, so that no 2N×2N product is needed.

    Args:
        z1: (N, D) embeddings of the first views; they need not be normalized.
        z2: (N, D) embeddings of the second views.

    Returns:
        two 0-dim tensors without gradient, float32 at least; the second is 0 for a batch of one image.
    """
    _check(z1, z2)
    with torch.autocast(z1.device.type, enabled=False):
        u = _unit_vectors(z1, z2)
        u1, u2 = u.chunk(2)
        images = u1.shape[0]
        positive = (u1 * u2).sum()
        negative = u.sum(dim=0).square().sum() - u.square().sum() - 2 * positive
        pairs = 2 * images * (2 * images - 2)
        return positive / images, negative / pairs if pairs else torch.zeros_like(positive)


def _check(z1: Tensor, z2: Tensor) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"two (N, D) tensors of equal shape are needed, not {tuple(z1.shape)} and {tuple(z2.shape)}")


def _unit_vectors(z1: Tensor, z2: Tensor) -> Tensor:
    z = torch.cat((z1, z2))
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
