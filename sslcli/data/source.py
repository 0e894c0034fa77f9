"""Stands between a dataset and the loop: which images make up which batch, and how they reach the device.

The order is a function of (seed, epoch), a batch's place in it a function of the step: a source has no state to save.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset, Source, SourceBatch
from sslcli.contracts.errors import UserError
from sslcli.randomness import permutation

#: Decoded images above this many bytes are not kept in memory.
RESIDENT_BYTES = 8 * 2**30


def resident_images(dataset: Dataset, budget: int = RESIDENT_BYTES) -> Tensor | None:
    """Returns all images as one uint8 tensor (N, C, H, W) on the CPU, decoded one by one where it must be.

    None where the images differ in size or take more than `budget` bytes.
    """
    size = dataset.info.image_size
    if size is None or len(dataset) * dataset.info.channels * size[0] * size[1] > budget:
        return None
    images = dataset.images()
    if images is not None:
        return images
    images = torch.empty((len(dataset), dataset.info.channels, *size), dtype=torch.uint8)
    for index in range(len(dataset)):
        images[index] = dataset.image(index)
    return images


def open_source(
    dataset: Dataset,
    device: torch.device,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Source:
    """Returns the source that suits the dataset; the arguments are those of `ResidentSource`.

    Raises:
        UserError: if none does, or if the batch size does not go with the rest.
    """
    images = resident_images(dataset)
    if images is None:
        raise UserError(
            f"data: {dataset.info.name} cannot be trained on yet: only images of equal size that fit into memory "
            f"together ({RESIDENT_BYTES // 2**30} GiB) can; use another data set, or a smaller part of it (data.limit)"
        )
    return ResidentSource(dataset, device, batch_size, accumulate, seed, rank, world_size, images=images)


class ResidentSource(Source):
    """All images as one uint8 tensor on the device; a batch is one gather. An incomplete last batch is left out.

    The global batch of a step is a stretch of the epoch's order. Micro-batch by micro-batch, and within each rank by
    rank, it is cut into equal stretches, so that an image's position says neither how many ranks there are nor how
    often gradients are accumulated.

    Args:
        dataset: where the images come from.
        device: where they stay.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per optimizer step.
        seed: the run's.
        rank: of this process.
        world_size: how many processes there are.
        images: `resident_images(dataset)`, where the caller has it already.

    Raises:
        UserError: if the batch cannot be cut into equal parts or is larger than the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        images: Tensor | None = None,
    ) -> None:
        length = len(dataset)
        if batch_size % (accumulate * world_size):
            raise UserError(
                f"training.batch_size: {batch_size} cannot be shared out evenly over {world_size} process(es) × "
                f"{accumulate} micro-batch(es); set it to a multiple of {accumulate * world_size}, or change "
                "training.accumulate"
            )
        if batch_size > length:
            raise UserError(
                f"training.batch_size: {batch_size} is more than the {length} images of {dataset.info.name}; "
                f"set training.batch_size to {length} or less, or raise data.limit"
            )
        if images is None:
            images = resident_images(dataset)
        if images is None:
            raise ValueError(f"{dataset.info.name} cannot be kept in memory")
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = None if dataset.labels is None else dataset.labels.to(self.device)
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = length // batch_size

    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        epoch, place = divmod(step, self.steps_per_epoch)
        while True:
            order = permutation(self.seed, epoch, len(self.images))
            for number in range(place, self.steps_per_epoch):
                yield [self._batch(order, epoch, number, micro) for micro in range(self.accumulate)]
            epoch, place = epoch + 1, 0

    def _batch(self, order: Tensor, epoch: int, number: int, micro: int) -> SourceBatch:
        share = self.batch_size // (self.accumulate * self.world_size)
        start = number * self.batch_size + (micro * self.world_size + self.rank) * share
        positions = torch.arange(start, start + share)
        index = order[start : start + share]
        there = index
        if self.device.type == "cuda":
            there = index.pin_memory().to(self.device, non_blocking=True)
        return SourceBatch(
            images=[self.images.index_select(0, there)],
            cropped=False,
            labels=None if self.labels is None else self.labels.index_select(0, there),
            index=index,
            positions=positions,
            epoch=epoch,
        )
