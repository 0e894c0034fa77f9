"""NT-Xent, the contrastive loss of SimCLR.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
https://arxiv.org/abs/2002.05709, equation 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.distributed import all_gather, rank

from .monitors import found_among
from .rows import check_pair, check_temperature, unit_rows


def nt_xent(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns the normalized temperature-scaled cross-entropy of two views, averaged over the 2N anchors.

    With u the L2-normalized embeddings (the inputs need not be normalized) and j(i) the other view of i's image:

        loss = mean over i of  −log( exp(uᵢ·u_j(i)/τ) / Σ_{k≠i} exp(uᵢ·u_k/τ) )

    Over several processes k runs over all processes' embeddings, gathered with gradient, and the anchors are local:
    the mean of the processes' losses, and their gradients averaged as DDP does, are those of one process with the
    joined batch. A batch of one image has no negatives and its loss is 0.

    Args:
        z1: (N, D) embeddings of the first views, floating; N is the same on every process.
        z2: (N, D) embeddings of the second views, in the same order.
        temperature: τ > 0; a number, or a 0-dim tensor on the embeddings' device.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes are not two equal (N, D), or a temperature given as a number is not positive.
    """
    return nt_xent_and_metrics(z1, z2, temperature)[0]


def nt_xent_and_metrics(z1: Tensor, z2: Tensor, temperature: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns `nt_xent` and its monitors, 0-dim without gradient; arguments and errors as for `nt_xent`.

    `contrast_top1`, `contrast_top5`: how often an anchor's positive is found among all 2N·world − 1 other embeddings
    (see `found_among`). `pos_cos`, `neg_cos`: mean cosine of the positive pairs, and of any two embeddings of different
    images, within this process's batch (0 where there is one image).
    """
    check_pair(z1, z2)
    check_temperature(temperature)
    with torch.autocast(z1.device.type, enabled=False):
        u = unit_rows(torch.cat((z1, z2)))  # 2N×D
        # Dividing the 2N×D factor is cheaper than dividing the 2N×2NW product.
        logits = (u / temperature) @ all_gather(u, gradient=True).T  # 2N×2NW
        start, images = len(u) * rank(), len(z1)
        logits.diagonal(start).fill_(float("-inf"))
        j = torch.arange(len(u), device=u.device).roll(images) + start  # the column of each anchor's positive
        with torch.no_grad():  # before the loss, which keeps a matrix of the same size for its gradient
            # The sum over the negative pairs is |Σu|² − Σ|u|² − 2·Σ u₁·u₂: no product of all with all is needed.
            positive = (u[:images] * u[images:]).sum()
            negative = u.sum(dim=0).square().sum() - u.square().sum() - 2 * positive
            pairs = 2 * images * (2 * images - 2)
            metrics = {
                **found_among(logits.gather(1, j.unsqueeze(1)).squeeze(1), logits, among=True),
                "pos_cos": positive / images,
                "neg_cos": negative / pairs if pairs else torch.zeros_like(positive),
            }
        return F.cross_entropy(logits, j), metrics
