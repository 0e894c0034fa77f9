"""Shuffled batch norm: each process encodes samples of all processes, so that batch statistics leak no answer.

He et al. (MoCo), https://arxiv.org/abs/1911.05722, section 3.3: where a query and its key share their batch's
statistics, these reveal which key is the right one. Synchronized batch norm closes the same leak.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sslcli.distributed import all_gather, is_distributed, rank, world_size
from sslcli.randomness import hash_bits

from .sync_norm import local_batch_norms


def encode_shuffled(
    encoder: nn.Module,
    images: Tensor,
    number: Tensor,
    *,
    enabled: bool = True,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Runs a momentum encoder, on a shuffled portion of all processes' images where that makes a difference.

    It does while training on several processes with batch norms that see only their own process's samples. With
    synchronized norms a shuffle would move all images between processes, and change nothing.

    Args:
        encoder: (N, C, H, W) → (N, D), without gradient.
        images, number: as for `shuffled`.
        enabled: whether to shuffle at all.
        encode: what is run of the encoder, if it is not its `forward`; with the same shapes.
    """
    run: Callable[[Tensor], Tensor] = encode or encoder
    if enabled and encoder.training and is_distributed() and local_batch_norms(encoder):
        return shuffled(run, images, number)
    return run(images)


def shuffled(network: Callable[[Tensor], Tensor], images: Tensor, number: Tensor) -> Tensor:
    """Runs a network on a shuffled portion of all processes' images and brings the results back in order.

    On one process the network sees the batch in another order, which changes nothing.

    Args:
        network: (N, C, H, W) → (N, D), without gradient.
        images: this process's (N, C, H, W); N is the same on every process.
        number: what the permutation is a function of: a 0-dim int64 tensor on the images' device, the same on every
            process and different at every step. Nothing waits for it.

    Returns:
        (N, D): the results for this process's own images, in their order.
    """
    count = len(images)
    own = slice(count * rank(), count * (rank() + 1))
    indices = torch.arange(count * world_size(), device=images.device)
    order = torch.argsort(hash_bits(number, indices), stable=True)
    with torch.no_grad():
        # Copied into a tensor like the batch: the gather loses a channels_last format.
        mixed = torch.empty_like(images).copy_(all_gather(images)[order[own]])
        results = all_gather(network(mixed))  # row i belongs to image order[i]
        return results[torch.argsort(order)[own]]
