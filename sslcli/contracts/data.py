"""Contract of the group `sslcli.datasets`: images by index or as a stream, labels or none, and what is known of them.

A dataset knows nothing of training: the order of the images, batches, workers and views belong to the source
(`sslcli.data`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .errors import UserError
from .options import FREE, Options

if TYPE_CHECKING:
    from PIL import Image

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
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Mean of each channel of images in [0, 1], instead of the dataset's own or a measured one; along with `std`."""
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Standard deviation of each channel, likewise."""

    @model_validator(mode="after")
    def _mean_and_std_belong_together(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std need each other: give both")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need as many numbers: {len(self.mean)} and {len(self.std)}")
        return self


class RootedOptions(DatasetOptions):
    """Options of a dataset that is read from a folder."""

    root: Path = Field(default=Path("data"), json_schema_extra=FREE)
    """The folder that holds the data; `~` is expanded."""


class StreamOptions(DatasetOptions):
    """Options that every stream has."""

    limit: int | None = Field(default=None, ge=1)
    """Use only this many images: the first ones of every shard, as many of each."""
    epoch_images: int | None = Field(default=None, ge=1)
    """Images that count as one epoch; null: all, where the stream knows how many there are."""
    open_shards: int = Field(default=16, ge=1)
    """Shards that are read at the same time, each for its part of every batch. Processes and workers share them, so a
    multiple of both is best."""
    shuffle_buffer: int = Field(default=4096, ge=1)
    """Images, over all open shards, that are shuffled at a time; encoded, two times as many are in memory."""
    max_unreadable: float = Field(default=0.01, ge=0, le=1, json_schema_extra=FREE)
    """The run ends if more than this fraction of the images, and more than one, cannot be read (0: if any cannot);
    otherwise such images are replaced."""


class AnyDataset(ABC):
    """What both kinds share. Opening one finds the data, or raises a `UserError` that says what is missing.

    Attributes:
        Options: the options' class.
        splits: the values that `split` can take.
        info: see `DataInfo`.
        skipped: files beside the images that are of no kind that is read: how many of each (`.gif`). A run shows them.
    """

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions
    splits: ClassVar[tuple[str, ...]] = ("train",)

    options: DatasetOptions
    info: DataInfo
    skipped: Mapping[str, int] = MappingProxyType({})

    def __init__(self, options: DatasetOptions) -> None:
        self.options = options

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        """Returns the default side of the views, in pixels; needs no data."""
        return 224

    @classmethod
    def channel_count(cls, options: DatasetOptions) -> int:
        """Returns the number of image channels; needs no data."""
        return 3

    @classmethod
    @abstractmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """Returns the options of the labeled images to fit (`train`) or to evaluate (`eval`) a probe on, or None."""

    @classmethod
    def open(cls, options: DatasetOptions) -> Self:
        """Opens it, normalized with the options' `mean` and `std` if they are given; UserError if these are not of its
        channels."""
        dataset = cls(options)
        if options.mean is not None and options.std is not None:
            given, channels = len(options.mean), dataset.info.channels
            if given != channels:
                raise UserError(f"data.mean, data.std: {given} numbers each, but images have {channels} channel(s)")
            try:
                dataset.info = replace(dataset.info, mean=options.mean, std=options.std)
            except AttributeError:
                name = f"{dataset.info.name!r}"
                raise UserError(f"data.mean, data.std: the dataset {name} has its own, which cannot be set") from None
        return dataset


class Dataset(AnyDataset):
    """Images by index.

    The option `limit` is applied by whoever opens it (`sslcli.data.subset.limited`), unless the dataset already has.

    Attributes:
        labels: (N,) int64 on the CPU, or None.
    """

    labels: Tensor | None = None

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
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """Returns the options of the labeled images to fit (`train`) or to evaluate (`eval`) a probe on.

        None where there are no labels. The default: the splits `train` and `test`, if `splits` has both.
        """
        if not {"train", "test"} <= set(cls.splits):
            return None
        # A limit is for training images; results are reported on the whole test split.
        limit = options.limit if part == "train" else None
        return options.model_copy(update={"split": "train" if part == "train" else "test", "limit": limit})


@dataclass(frozen=True)
class StreamItem:
    """An image of a stream.

    Attributes:
        image: the bytes of an image file, which are decoded later, in any process; or uint8 (C, H, W); or a PIL image.
        next: `read(shard, next)` gives what follows this image. Any number above 0 that the stream understands: a byte
            offset, a row. It is part of checkpoints.
        label: from 0; needed if the info has classes.
        name: in messages about the image; by default the shard's name and the image's number in it.
    """

    image: bytes | Tensor | Image.Image
    next: int
    label: int | None = None
    name: str = ""


class StreamDataset(AnyDataset):
    """Images that are read shard by shard, not by index: tar files, tables, buckets. To train on, not to evaluate on.

    A shard has the same images in the same order each time. Everything else is sslcli's: in each pass the shards follow
    in another order, drawn from the seed; `open_shards` of them are read at the same time, each for its part of every
    batch, and the images of each are shuffled in blocks, drawn from the seed too. What is exact:

    - Which image is at which place of a batch is a function of the seed, the stream and its options, and
      `training.batch_size`; neither the number of processes or workers nor `training.accumulate` changes it.
    - A checkpoint has a position for each open shard. A resumed run reads what the run would have read, after reading
      `shuffle_buffer` images again, wherever in the epoch it is.
    - In each pass each image is read once, and nothing is left out between epochs. If shards differ in size or the
      numbers above do not divide each other, passes overlap: some images of the next are read before the last ones of
      this.

    Attributes:
        shards: their names, without folders, in the same order on every machine.
        length: images in all of them, without the option `limit`; None if that is not known.
    """

    Options: ClassVar[type[DatasetOptions]] = StreamOptions

    options: StreamOptions
    shards: Sequence[str]
    length: int | None = None

    @abstractmethod
    def read(self, shard: int, position: int) -> Iterator[StreamItem]:
        """Yields the images of a shard from a position on: 0, or the `next` of an image in it. Several iterators are
        read at the same time, some perhaps of one shard.

        Whatever it raises ends the run in one line that names the shard; an image that cannot be decoded is replaced.
        """

    def shard_size(self, shard: int) -> int | None:
        """Returns a shard's size in bytes, where that is known without reading it; else None. A resumed run says that
        the data changed if it differs."""
        return None

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        return None


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
