"""What feeds the images of a dataset to the training loop; see `sslcli.data` for the sources that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class SourceBatch:
    """What a source hands to the loop: uint8 images, not yet views.

    Attributes:
        images: one uint8 tensor (N, C, H, W) on the device that all views share; or, where workers have cropped,
            one (N, C, size, size) per view.
        cropped: whether the geometric operation of each view has been applied.
        labels: (N,) int64 on the device, or None.
        index: (N,) int64 on the CPU: the images' indices in the dataset; in a stream each has a number of its own.
        positions: (N,) int64 on the CPU: their positions in the epoch's order over all ranks; draws hash these.
        epoch: counted from 0.
        replaced: for each image that could not be read, its name and the reason; `index` has the one used instead.
    """

    images: list[Tensor]
    cropped: bool
    labels: Tensor | None
    index: Tensor
    positions: Tensor
    epoch: int
    replaced: tuple[str, ...] = ()


@dataclass
class FirstImages:
    """Some of a step's images, for a picture.

    Attributes:
        batch: as `Source.batches` yields it, of so few.
        originals: uint8 (C, H, W) each, the whole images, no larger than asked.
        sizes: (N, 2) int64, their height and width as they were read.
        names: those of the images in messages.
    """

    batch: SourceBatch
    originals: list[Tensor]
    sizes: Tensor
    names: list[str]


class Source(ABC):
    """Feeds the images of a dataset to the loop, which knows no other kind of data."""

    #: Global batches in an epoch.
    steps_per_epoch: int
    #: Steps whose batches may be made before they are asked for.
    ahead: int = 0

    def prepare(self, tell: object = None) -> None:
        """Does the slow work before the first batch, once, on every process; otherwise `batches` does it.

        `tell` is ignored; messages go to the logger.
        """

    @abstractmethod
    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        """Yields this rank's micro-batches of step `step`, `step + 1`, … without end."""

    @abstractmethod
    def first_images(self, step: int, count: int, side: int) -> FirstImages:
        """Returns the first images of this rank's first micro-batch of a step; changes nothing.

        Args:
            step: of the plan; of a stream, which cannot be read elsewhere, the one where it is.
            count: images at most.
            side: the longer side of the originals in pixels, at most.

        Raises:
            SslError: an image cannot be read, and no other in its place, or a view of it cannot be made.
        """

    def cursor(self) -> dict[str, Any] | None:
        """Returns, as JSON data, where reading goes on after the last step that was yielded; None where the step says
        it. All processes call it together."""
        return None

    def restore(self, cursor: dict[str, Any] | None) -> None:
        """Takes what `cursor` returned after some step, from which `batches` then starts.

        Raises UserError if it is missing, or not of this data and batch size.
        """

    def close(self) -> None:
        """Stops workers, if there are any."""
