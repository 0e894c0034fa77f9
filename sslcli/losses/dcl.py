"""The decoupled contrastive loss: NT-Xent without the positives in the denominator; and its weighted form, DCLW.

Yeh, Hong, Hsu, Liu, Chen, LeCun, *Decoupled Contrastive Learning*, ECCV 2022, https://arxiv.org/abs/2110.06848,
section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslcli.distributed import all_gather, rank, world_size

from .monitors import class_cosines, found_among
from .rows import check_temperature, unit_rows


def dcl(z: Tensor, temperature: float | Tensor, sigma: float | None = None) -> Tensor:
    """Returns the decoupled contrastive loss, averaged over all views of all images as anchors.

    With u the L2-normalized embeddings (normalized here), P(i) the other views of i's image, and N(i) all views of all
    other images:

        loss = mean over i of  −mean over p∈P(i) of w_ip·uᵢ·u_p/τ + log Σ_{k∈N(i)} exp(uᵢ·u_k/τ)

    w is 1 (DCL). With σ it is 2 − exp(uᵢ·u_p/σ) / mean of exp(u·u′/σ) over the images, for the same two views (DCLW's
    negative von Mises-Fisher weights): less than 1 for pairs that are alike already, and 1 on average. As a weight it
    has no gradient.

    Over several processes k and that mean run over all processes' embeddings, gathered with gradient, and the anchors
    are its own: the mean of the processes' losses, and their gradients averaged as DDP does, are those of one process
    with the joined batch. The loss may be negative: with two views it is log(2N − 2) if all embeddings are alike.

    Args:
        z: (N, V, D) embeddings of V ≥ 2 views of N images, floating; N is the same on every process.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        sigma: σ > 0 of DCLW; None: DCL.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if z is not (N, V, D) with two views, there are fewer than two images on all processes, or a number
            is not positive.
    """
    return dcl_and_metrics(z, temperature, sigma)[0]


def dcl_and_metrics(
    z: Tensor, temperature: float | Tensor, sigma: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `dcl` and its monitors, 0-dim without gradient; arguments and errors as for `dcl`.

    `pos_cos`, `neg_cos`: see `class_cosines`. With two views also `contrast_top1`, `contrast_top5`: how often an
    anchor's positive is found among the embeddings of all processes (see `found_among`).
    """
    if z.ndim != 3 or z.shape[1] < 2 or len(z) * world_size() < 2:
        raise ValueError(f"embeddings (N, V, D) of two images and two views or more are needed, not {tuple(z.shape)}")
    check_temperature(temperature)
    check_temperature(1.0 if sigma is None else sigma, "sigma")
    images, views = z.shape[:2]
    with torch.autocast(z.device.type, enabled=False):
        u = unit_rows(z).transpose(0, 1)  # V×N×D
        own = u.flatten(0, 1)  # VN×D, view after view
        logits = (own / temperature) @ all_gather(own, gradient=True).T  # VN×WVN
        start = len(own) * rank()
        itself = logits[:, start : start + len(own)].view(views, images, views, images)
        itself.diagonal(dim1=1, dim2=3).fill_(float("-inf"))  # every view of the anchor's own image
        positive = torch.einsum("vnd,pnd->vpn", u, u)
        pull = positive if sigma is None else positive * _weights(positive.detach(), sigma)
        others = 1 - torch.eye(views, dtype=u.dtype, device=u.device)
        pull = (pull * others.unsqueeze(2)).sum(dim=1) / (views - 1)  # V×N
        metrics = class_cosines(z, None)
        if views == 2:
            metrics |= found_among(positive[0, 1].detach().repeat(2) / temperature, logits.detach(), among=False)
        return (logits.logsumexp(dim=1) - pull.flatten() / temperature).mean(), metrics


@torch.no_grad()
def _weights(positive: Tensor, sigma: float) -> Tensor:
    """DCLW's weights of the cosines (V, V, N) of each two views of an image; 1 on average over all images."""
    everyone = all_gather(positive.movedim(2, 0)) / sigma  # WN×V×V
    images = positive.shape[2]
    share = everyone.softmax(dim=0)[images * rank() : images * (rank() + 1)]
    return 2 - len(everyone) * share.movedim(0, 2)
