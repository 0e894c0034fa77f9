"""Parts of a dataset: the fixed choice of `limit`, random fractions of each class, and a dataset of chosen images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.randomness import hash_bits, permutation, seed_for

#: The choice does not depend on the run's seed: runs that differ only in their seed see the same images.
_LIMIT = 0x6C696D6974
#: Separates the held-out images from what else is drawn from a seed.
_HELD_OUT = 1


def first_of_each_class(labels: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Marks the first `counts[c]` images of each class c in a given order.

    Args:
        labels: (N,) int64, at least 0.
        order: (N,) int64, a permutation of the images.
        counts: (C,) int64, at most the size of each class.

    Returns:
        bool (N,).
    """
    grouped = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    marked = torch.zeros(len(labels), dtype=torch.bool)
    marked[grouped[rank < counts[labels[grouped]]]] = True
    return marked


def stratified_choice(labels: Tensor, limit: int | None) -> Tensor:
    """Returns the indices of `limit` images, ascending, int64 (K,); all of them without a limit.

    Each class gets its share, rounded so that the sum is `limit` (the largest remainders are rounded up). The choice
    is a function of the labels (N,) alone, int64, at least 0; all 0 for images without labels.
    """
    every = torch.arange(len(labels))
    if limit is None or limit >= len(labels):
        return every
    exact = torch.bincount(labels) * limit  # in units of 1 / N, so that nothing is rounded too early
    counts = exact // len(labels)
    left_over = limit - int(counts.sum())
    counts[torch.argsort(exact % len(labels), descending=True, stable=True)[:left_over]] += 1
    order = torch.argsort(hash_bits(_LIMIT, every), stable=True)
    return first_of_each_class(labels, order, counts).nonzero().flatten()


def fixed_choice(count: int, limit: int | None, labels: Tensor | None = None) -> Tensor:
    """Returns the indices (K,), ascending, that `stratified_choice` takes of `count` images with labels or without."""
    return stratified_choice(torch.zeros(count, dtype=torch.int64) if labels is None else labels, limit)


def stratified_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """Chooses images at random, the same fraction of each class, at least one; smaller choices are part of larger ones.

    Args:
        labels: (N,) int64.
        share: above 0, at most 1.
        seed: what the choice is drawn from.

    Returns:
        indices (K,) int64, ascending, on the CPU.
    """
    labels = labels.cpu()
    counts = (torch.bincount(labels) * share).round().long().clamp_min(1)
    return first_of_each_class(labels, permutation(seed, 0, len(labels)), counts).nonzero().flatten()


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits images at random, the same fraction of each class; a class with a single image is not split.

    Args:
        labels: (N,) int64.
        share: of the second part, between 0 and 1; at least one image of each class.
        seed: what the choice is drawn from.

    Returns:
        indices (M,) and (N − M,) int64, ascending, on the CPU.
    """
    labels = labels.cpu()
    sizes = torch.bincount(labels)
    counts = torch.minimum((sizes * share).round().long().clamp_min(1), sizes - 1)
    held = first_of_each_class(labels, permutation(seed_for(seed, _HELD_OUT), 0, len(labels)), counts)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


class Subset(Dataset):
    """The images of a dataset at given indices, int64 (K,), in their order."""

    def __init__(self, data: Dataset, indices: Tensor) -> None:
        super().__init__(data.options)
        self.data, self.indices = data, indices
        self.info = data.info
        self.labels = None if data.labels is None else data.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        return self.data.image(int(self.indices[index]))

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        return self.data.image_for(int(self.indices[index]), wanted)

    def read_ahead(self, indices: Sequence[int]) -> None:
        self.data.read_ahead(self.indices[list(indices)].tolist())

    def images(self) -> Tensor | None:
        images = self.data.images()
        if images is None or (len(self) == len(images) and torch.equal(self.indices, torch.arange(len(images)))):
            return images
        return images[self.indices]

    def name_of(self, index: int) -> str:
        return self.data.name_of(int(self.indices[index]))

    def path_of(self, index: int) -> Path | None:
        return self.data.path_of(int(self.indices[index]))


def limited(dataset: Dataset) -> Dataset:
    """Applies the option `limit` to a dataset that has not applied it itself."""
    limit = dataset.options.limit
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, fixed_choice(len(dataset), limit, dataset.labels))
