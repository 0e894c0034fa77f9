"""Any map-style dataset of a Python program as a `Dataset`: PIL images, arrays or tensors, with or without labels.

A few images of one size are read once and kept; all others are read by the same worker processes as image files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.options import FREE

from ..normalization import IMAGENET, Statistics, sampled
from ..subset import fixed_choice
from .given import Given, reason
from .items import Label, declared_classes, split_item, to_pixels
from .listed import ImageFiles

#: Largest default size of views.
_VIEW = 224


def _american(split: Any) -> Any:
    """Runs of version 0.1 stored `labelled`."""
    return "labeled" if split == "labelled" else split


class WrappedOptions(DatasetOptions):
    """Options of a dataset that is given as an object."""

    split: Annotated[Literal["train", "labeled", "test"], BeforeValidator(_american)] = "train"
    """`train`: the images to train on; `labeled` and `test`: those to fit a probe on and to evaluate it on."""
    count: int | None = Field(default=None, ge=1)
    """Number of items in the object; set by `sslcli.train`, so that a run is not resumed with a different object."""
    files: str | None = None
    """For a list of files: a digest of their names, without folders, and of their order; set by `sslcli.train`."""
    channels: Literal[1, 3] | None = None
    """3 for color, 1 to read everything as gray; null: gray if the images are."""
    normalization: Literal["imagenet", "measured"] = "imagenet"
    """Mean and standard deviation: ImageNet's, or those of (up to 2,000 of) the images."""
    labels: Literal["auto", "read", "none"] = "auto"
    """`auto`: from the object's `targets` or `labels`, else from the items if they are kept in memory; `read`: every
    item is read for its label when the run starts; `none`: labels are ignored."""
    in_memory: bool | None = None
    """Keep the images in memory, which requires that all have one size; null: if so and they take up to 256 MiB."""
    threads: bool | None = Field(default=None, json_schema_extra=FREE)
    """Evaluations may call `__getitem__` from several threads at once; null: only for torchvision's datasets and for
    lists of files."""
    max_unreadable: float = Field(default=0.01, ge=0, le=1, json_schema_extra=FREE)
    """The run ends if more than this fraction of the images, and more than one, cannot be read (0: if any cannot);
    otherwise such images are replaced."""


class WrappedDataset(Dataset):
    """An object of a Python program; `given` has it, and the labeled pair that was given with it, by split.

    Raises:
        UserError: its items are not images, or the options do not suit them.
    """

    Options = WrappedOptions
    splits = ("train", "labeled", "test")
    options: WrappedOptions
    given: ClassVar[Mapping[str, Given]]

    def __init__(self, options: WrappedOptions) -> None:
        super().__init__(options)
        if options.split not in self.given:
            raise UserError(f"data.split: {options.split!r} was not given; available: {', '.join(self.given)}")
        given = self._given = self.given[options.split]
        channels = options.channels or given.look.channels
        if options.in_memory and given.look.size is None:
            raise UserError(f"data.in_memory: the images of {given.title} differ in size; leave the option out")
        keep = given.fits(channels) if options.in_memory is None else options.in_memory
        labels = self._labels_of(options.split, options.labels, channels, kept=keep)
        images = given.everything(channels, keep=True)[0] if keep else None
        if options.in_memory and images is None:
            raise UserError(
                f"data.in_memory: {given.title} has images of another size, or some that cannot be read; leave the "
                "option out"
            )
        every, classes = (None, None) if labels is None else self._numbered(labels, channels)
        limit = options.limit  # applied here, since only the images that are used are measured for their statistics
        self._chosen = fixed_choice(given.length, limit, every)
        self.labels = None if every is None else every[self._chosen]
        self._images = images if images is None or limit is None else images[self._chosen]
        self._channels = channels
        self._files = given.dataset if isinstance(given.dataset, ImageFiles) else None
        known = self._files is not None or type(given.dataset).__module__.startswith("torchvision.")
        self._threads = known if options.threads is None else options.threads
        size = None if images is None else (images.shape[2], images.shape[3])
        self.info = DataInfo(given.title, channels, size, *self._statistics(), classes)

    @classmethod
    def _labels_of(cls, split: str, how: str, channels: int, *, kept: bool) -> list[Label] | None:
        """The labels of a split's items; items are read for them only if necessary (see the options)."""
        given = cls.given[split]
        if how == "none":
            return None
        if given.declared is not None:
            return given.declared
        pair = (cls.given[name].dataset for name in ("labeled", "test") if name in cls.given)
        wanted = how == "read" or kept or any(each is given.dataset for each in pair)
        return given.everything(channels, keep=kept)[1] if given.look.labels and wanted else None

    @classmethod
    def _numbered(cls, own: list[Label], channels: int) -> tuple[Tensor, tuple[str, ...]]:
        """Turns labels into numbers, along with the class names: those of all labeled parts, so that they agree."""
        every = set(own)
        for split, given in cls.given.items():
            every |= set(cls._labels_of(split, "auto", channels, kept=given.fits(channels)) or ())
        if any(isinstance(label, str) for label in every):
            names = sorted(map(str, every))
            number = {name: index for index, name in enumerate(names)}
            return torch.tensor([number[str(label)] for label in own]), tuple(names)
        numbers = torch.tensor([int(label) for label in own])
        count = max(map(int, every)) + 1
        declared = (declared_classes(given.dataset) for given in cls.given.values())
        known = (names for names in declared if names is not None and len(names) >= count)
        return numbers, tuple(next(known, map(str, range(count))))

    def _statistics(self) -> Statistics:
        if self.options.normalization == "imagenet" or self.options.mean is not None:  # `open` puts a given one here
            return IMAGENET[self._channels]
        return sampled(self._given.title, len(self), self.image, threads=self._threads)

    def __len__(self) -> int:
        return len(self._chosen)

    def image(self, index: int) -> Tensor:
        """Raises UnreadableImage for whatever `__getitem__` raises, and for what is not an image."""
        if self._images is not None:
            return self._images[index]
        if self._files is not None:
            return self._files.read(int(self._chosen[index]), self._channels)
        try:
            item = self._given.item(int(self._chosen[index]), threads=self._threads)
            return to_pixels(split_item(item)[0], self._channels)
        except Exception as error:
            raise UnreadableImage(self.name_of(index), reason(error)) from error

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        if self._files is None or self._images is not None:
            return self.image(index)
        return self._files.read(int(self._chosen[index]), self._channels, wanted)

    def images(self) -> Tensor | None:
        return self._images

    def path_of(self, index: int) -> Path | None:
        return None if self._files is None else self._files.path(int(self._chosen[index]))

    def name_of(self, index: int) -> str:
        if self._files is not None:
            return str(self.path_of(index))
        return f"{self._given.title}[{int(self._chosen[index])}]"

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        given = cls.given.get(options.split)
        size = None if given is None else given.look.size
        return _VIEW if size is None else min(*size, _VIEW)

    @classmethod
    def channel_count(cls, options: DatasetOptions) -> int:
        assert isinstance(options, WrappedOptions)
        given = cls.given.get(options.split)
        return options.channels or (3 if given is None else given.look.channels)

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """The labeled pair that was given; to fit on, else the training images. A limit applies only to these."""
        given, wanted = cls.given, "labeled" if part == "train" else "test"
        if wanted not in given:
            return options if part == "train" and "train" in given else None
        same = next(name for name in given if given[name].dataset is given[wanted].dataset)  # one object, one split
        return options if same == options.split else options.model_copy(update={"split": same, "limit": None})

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made for one object, and no other process finds it by its name.
        return object.__new__, (WrappedDataset,), self.__dict__


def wrap_datasets(given: Mapping[str, Given]) -> type[WrappedDataset]:
    """Returns a dataset class of the given objects by split: `train`, `labeled`, `test`."""
    name = type(next(iter(given.values())).dataset).__name__
    return type(name, (WrappedDataset,), {"given": dict(given)})
