"""`limit`: a fixed random part of a data set, with the same share of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from sslcli.randomness import hash_bits

#: The choice must not follow the run's seed: runs that differ in it alone shall see the same images.
_KEY = 0x6C696D6974


def stratified_choice(labels: Tensor, limit: int | None) -> Tensor:
    """Returns the places of `limit` images, ascending, as int64 (K,); of all without a limit.

    Each class gives its share, rounded so that the sum is `limit` (the largest remainders are rounded up). Which ones
    is a function of the labels alone.

    Args:
        labels: (N,) int64, at least 0; all 0 for images without labels.
        limit: how many; one above N asks for all.
    """
    places = torch.arange(len(labels))
    if limit is None or limit >= len(labels):
        return places
    sizes = torch.bincount(labels)
    exact = sizes * limit  # in units of 1 / N, so that nothing is rounded before it must be
    shares = exact // len(labels)
    left_over = limit - int(shares.sum())
    shares[torch.argsort(exact % len(labels), descending=True, stable=True)[:left_over]] += 1
    shuffled = torch.argsort(hash_bits(_KEY, places), stable=True)
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]
    rank = places - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return grouped[rank < shares[labels[grouped]]].sort().values
