"""How the images of a batch reach the device.

Which images these are is a function of the step (see `plan`), so a source has no state to save; that of a stream has.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sslcli.contracts.data import Dataset, StreamDataset
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.source import FirstImages, Source, SourceBatch
from sslcli.memory import is_out_of_memory
from sslcli.phases import phase

from .cache.room import available_memory
from .crops import at_most
from .plan import MicroBatch, Plan
from .stream import StreamSource
from .watch import STALL_TIMEOUT
from .workers import WorkerSource

if TYPE_CHECKING:
    from sslcli.views.pipeline import ViewMaker

log = logging.getLogger(__name__)

#: Decoded images above this many bytes are not kept in memory, or above this share of what is free there: a step needs
#: memory too.
RESIDENT_BYTES, RESIDENT_SHARE = 8 * 2**30, 0.5


def free_memory(device: torch.device) -> int | None:
    """Returns the bytes that may still be allocated on a device, or on this machine for others than CUDA's.

    None where the system doesn't say.
    """
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused


def resident_budget(device: torch.device, most: float = RESIDENT_BYTES, share: float = RESIDENT_SHARE) -> float:
    """Returns how many bytes of decoded images one process may keep on a device: at most `most`, and `share` of what
    is free there and on the host, where they are decoded."""
    free = [free_memory(device), free_memory(torch.device("cpu"))]
    free[1] = None if free[1] is None else free[1] // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min([most, *(share * each for each in free if each is not None)])


def resident_images(dataset: Dataset, budget: float = RESIDENT_BYTES) -> Tensor | None:
    """Returns all images as one uint8 tensor (N, C, H, W) on the CPU, decoded one by one if necessary.

    None where the images differ in size, take more than `budget` bytes, or cannot all be read.
    """
    size = dataset.info.image_size
    if size is None or len(dataset) * dataset.info.channels * size[0] * size[1] > budget:
        return None
    images = dataset.images()
    if images is not None:
        return images
    images = torch.empty((len(dataset), dataset.info.channels, *size), dtype=torch.uint8)
    try:
        for index in range(len(dataset)):
            images[index] = dataset.image(index)
    except UnreadableImage:  # the other source replaces it
        return None
    return images


def open_source(
    dataset: Dataset | StreamDataset,
    device: torch.device,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    *,
    views: ViewMaker,
    workers: int | Literal["auto"] = "auto",
    budget: float | None = None,
    drop_last: bool = True,
    stall_timeout: float | None = STALL_TIMEOUT,
) -> Source:
    """Returns the source that suits a dataset: all images on the device if they have one size and fit, else workers,
    which also read streams.

    Args:
        dataset: where the images come from.
        device: where they go.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per optimizer step.
        seed: the run's.
        rank: of this process.
        world_size: how many processes there are.
        views: crops the images in the workers.
        workers: processes that decode; 0 decodes in this one, `auto` leaves one of the cores free.
        budget: bytes of images that may be kept on the device; None: `resident_budget`.
        drop_last: leave out an incomplete last batch of an epoch.
        stall_timeout: seconds after which a worker that does not go on is killed; None: never.

    Raises:
        UserError: if the batch size does not suit the rest, or a stream is told to keep what it never leaves out.
    """
    if isinstance(dataset, StreamDataset):
        if not drop_last:
            raise UserError("training.drop_last: a stream leaves out no images between epochs: leave the option out")
        return StreamSource(
            dataset, device, batch_size, accumulate, seed, rank, world_size, views, workers, stall_timeout
        )
    plan = Plan(dataset.info.name, len(dataset), batch_size, accumulate, seed, rank, world_size, drop_last)
    if not drop_last and plan.left_out:
        log.info(
            f"training.drop_last: each epoch still leaves out {plan.left_out} of {plan.length:,} images: the last "
            f"step needs two or more, equally many, for each of {world_size} process(es) × {accumulate} micro-batch(es)"
        )
    images = resident_images(dataset, resident_budget(device) if budget is None else budget)
    if images is not None:
        try:
            return ResidentSource(dataset, device, plan, images)
        except RuntimeError as error:  # others may have taken the memory meanwhile
            if not is_out_of_memory(error):
                raise
            log.info("the images do not fit into the memory of the device: they are read while training")
    return WorkerSource(dataset, device, plan, views, workers, stall_timeout)


class ResidentSource(Source):
    """All images (`resident_images`) as one uint8 tensor on the device; a batch is one gather."""

    def __init__(self, dataset: Dataset, device: torch.device, plan: Plan, images: Tensor) -> None:
        self.device = torch.device(device)
        self.images = images.to(self.device)
        self.labels = None if dataset.labels is None else dataset.labels.to(self.device)
        self.plan = plan
        self.steps_per_epoch = plan.steps_per_epoch
        self._name_of = dataset.name_of

    def first_images(self, step: int, count: int, side: int) -> FirstImages:
        part = next(self.plan.steps(step))[0]
        batch = self._batch(MicroBatch(part.epoch, part.first, part.index[:count]))
        images = batch.images[0].cpu()
        sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
        names = [self._name_of(index) for index in batch.index.tolist()]
        return FirstImages(batch, [at_most(image, side) for image in images], sizes, names)

    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        for micro_batches in self.plan.steps(step):
            yield [self._batch(micro_batch) for micro_batch in micro_batches]

    def _batch(self, part: MicroBatch) -> SourceBatch:
        there = part.index
        if self.device.type == "cuda":
            with phase("transfer"):
                there = there.pin_memory().to(self.device, non_blocking=True)
        return SourceBatch(
            images=[self.images.index_select(0, there)],
            cropped=False,
            labels=None if self.labels is None else self.labels.index_select(0, there),
            index=part.index,
            positions=torch.arange(part.first, part.first + len(part.index)),
            epoch=part.epoch,
        )
