"""The supervised contrastive loss: all views of all images of one class attract each other. Without labels it is
NT-Xent for any number of views.

Khosla et al., *Supervised Contrastive Learning*, https://arxiv.org/abs/2004.11362, equation 2, L_out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sslcli.distributed import all_gather, rank, world_size

from .rows import check_temperature, unit_rows

#: Which embeddings are anchors, compared with those of all views: all views', or each image's first one.
Anchors = Literal["all", "one"]


def sup_con(
    z: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    base_temperature: float | Tensor = 0.07,
    contrast: Anchors = "all",
) -> Tensor:
    """Returns the supervised contrastive loss, averaged over the anchors.

    With u the L2-normalized embeddings (normalized here), P(i) all others of the same label as i:

        loss = −τ/τ₀ · mean over i of 1/|P(i)| · Σ_{p∈P(i)} log( exp(uᵢ·u_p/τ) / Σ_{k≠i} exp(uᵢ·u_k/τ) )

    An anchor without positives (a class seen once in one view) contributes 0 and still counts in the mean. Without
    labels, at τ₀ = τ and with `all` anchors, it is `nt_xent` for any number of views.

    Over several processes k and p run over all processes' embeddings, gathered with gradient, and the anchors are its
    own: the mean of the processes' losses, and their gradients averaged as DDP does, are those of one process with the
    joined batch.

    Args:
        z: (N, V, D) embeddings of V views of N images, floating; N is the same on every process.
        labels: (N,) integers on the embeddings' device; None: each image is its own class.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.
        base_temperature: τ₀ > 0, likewise; it scales the loss and nothing else.
        contrast: which embeddings are anchors: `all`, or those of the first view (`one`). They are compared with all
            views' in both cases.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if z is not (N, V, D) with an image and a view, the labels are not N integers, a temperature given
            as a number is not positive, or `contrast` is neither of the two.
    """
    _check(z, labels)
    check_temperature(temperature)
    check_temperature(base_temperature, "base temperature")
    if contrast not in ("all", "one"):
        raise ValueError(f"contrast must be 'all' or 'one', not {contrast!r}")
    images, views = z.shape[:2]
    with torch.autocast(z.device.type, enabled=False):
        own = unit_rows(z).transpose(0, 1).flatten(0, 1)  # VN×D, view after view
        everyone = all_gather(own, gradient=True)  # WVN×D
        if labels is None:  # each image is a class of its own
            classes = torch.arange(images * world_size(), device=z.device).view(-1, images).repeat(1, views).flatten()
        else:
            classes = all_gather(labels.repeat(views))
        anchors = images if contrast == "one" else images * views
        # Dividing the anchors is cheaper than dividing the product, which is the only matrix of its size.
        logits = (own[:anchors] / temperature) @ everyone.T
        itself = own.shape[0] * rank()
        logits.diagonal(itself).fill_(float("-inf"))
        positive = classes[itself : itself + anchors, None] == classes
        positive.diagonal(itself).fill_(False)
        count = positive.sum(dim=1)
        attraction = torch.where(positive, logits, 0).sum(dim=1) / count.clamp_min(1)
        per_anchor = torch.where(count > 0, logits.logsumexp(dim=1) - attraction, 0)
        return (per_anchor * (temperature / base_temperature)).mean()


def _check(z: Tensor, labels: Tensor | None) -> None:
    if z.ndim != 3 or 0 in z.shape[:2]:
        raise ValueError(f"embeddings (N, V, D) of at least one image and one view are needed, not {tuple(z.shape)}")
    if labels is not None and labels.shape != z.shape[:1]:
        raise ValueError(f"one label for each of {z.shape[0]} images is needed, not {tuple(labels.shape)}")
    if labels is not None and (labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"labels must be whole numbers, not {labels.dtype}")
