"""Contract of the group `sslcli.datasets`: images by index, labels or none, and what is known about them.

A dataset knows nothing of training: the order of the images, batches, workers and views belong to the source
(`sslcli.data`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from .options import FREE, Options

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class DataInfo:
    """What is known about a dataset without looking at an image.

    Attributes:
        name: the dataset's name.
        channels: 3 for color, 1 for grayscale.
        image_size: (height, width) in pixels if all images have the same, else None.
        mean: per channel, of images in [0, 1]; views are normalized with it.
        std: likewise.
        classes: the class names, in the order of their labels; None without labels.
    """

    name: str
    channels: int
    image_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None = None


class DatasetOptions(Options):
    """Options that every dataset has. A dataset's own options inherit from it."""

    split: str = "train"
    """Which part of the dataset to read."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many images: a fixed random choice, the same fraction of each class if there are labels."""


class RootedOptions(DatasetOptions):
    """Options of a dataset that is read from a folder."""

    root: Path = Field(default=Path("data"), json_schema_extra=FREE)
    """The folder that holds the data; `~` is expanded."""


class Dataset(ABC):
    """Images by index. Opening one (`__init__`) finds the data, or raises a `UserError` that says what is missing.

    The option `limit` is applied by whoever opens it (`sslcli.data.subset.limited`), unless the dataset already has.

    Attributes:
        Options: the options' class.
        splits: the values that `split` can take.
        info: see `DataInfo`.
        labels: (N,) int64 on the CPU, or None.
    """

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    splits: ClassVar[tuple[str, ...]] = ("train",)

    options: DatasetOptions
    info: DataInfo
    labels: Tensor | None = None

    def __init__(self, options: DatasetOptions) -> None:
        self.options = options

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Returns one image, uint8 (C, H, W).

        Raises:
            UnreadableImage: if it cannot be decoded.
        """

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        """Like `image`, but may return a smaller version whose sides are still at least `wanted` pixels each.

        This saves some decoders much time; None asks for the full size. The same arguments always give the same image.
        """
        return self.image(index)

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Called in a worker with the images that it is going to ask for next, for data that can fetch them at once."""

    def images(self) -> Tensor | None:
        """Returns all images as one uint8 tensor (N, C, H, W) where they are small and of one size, else None."""
        return None

    def name_of(self, index: int) -> str:
        """Returns the image's name in messages and exported features (its path, where it has one)."""
        return f"{self.info.name}[{index}]"

    def path_of(self, index: int) -> Path | None:
        """Returns the image's file, if each has its own; used to find images that two parts share."""
        return None

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        """Returns the default side of the views, in pixels; needs no data."""
        return 224

    @classmethod
    def channel_count(cls, options: DatasetOptions) -> int:
        """Returns the number of image channels; needs no data."""
        return 3

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """Returns the options of the labeled images to fit (`train`) or to evaluate (`eval`) a probe on.

        None where there are no labels. The default: the splits `train` and `test`, if `splits` has both.
        """
        if not {"train", "test"} <= set(cls.splits):
            return None
        # A limit is for training images; results are reported on the whole test split.
        limit = options.limit if part == "train" else None
        return options.model_copy(update={"split": "train" if part == "train" else "test", "limit": limit})

    @classmethod
    def open(cls, options: DatasetOptions) -> Self:
        return cls(options)


@dataclass
class SourceBatch:
    """What a source hands to the loop: uint8 images, not yet views.

    Attributes:
        images: one uint8 tensor (N, C, H, W) on the device that all views share; or, where workers have cropped,
            one (N, C, size, size) per view.
        cropped: whether the geometric operation of each view has been applied.
        labels: (N,) int64 on the device, or None.
        index: (N,) int64 on the CPU: the images' indices in the dataset.
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

    def close(self) -> None:
        """Stops workers, if there are any."""


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, in [0, 1], of uint8 images (N, C, H, W)."""
    count = images.shape[0] * images.shape[2] * images.shape[3]
    total, square = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in torch.split(images, 4096):  # a float64 copy of everything would be eight times the dataset
        values = part.double() / 255
        total += values.sum(dim=(0, 2, 3))
        square += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
