"""Datasets whose images are individual files: their options, and how the files are found and read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, RootedOptions
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import FREE, WARN
from sslcli.storage import expanded

from .decode import EXTENSIONS, decode, highest_value
from .normalization import IMAGENET, measure
from .paths import PathList, image_files, subfolders
from .subset import fixed_choice

KINDS = ", ".join(EXTENSIONS)
#: Images of 16 bits that are read to see whether they use their range.
_LOOKED_AT = 8

log = logging.getLogger(__name__)


class FileOptions(RootedOptions):
    """Options of datasets whose images are individual files."""

    channels: Literal[1, 3] = 3
    """3 for color, 1 to read everything as gray."""
    normalization: Literal["imagenet", "measured"] = "imagenet"
    """Mean and standard deviation: ImageNet's, or those of (up to 2,000 of) the images, measured once and cached."""
    cache: Literal["none", "memory", "disk", "auto"] = Field(default="none", json_schema_extra=WARN)
    """Decode each image once and keep its pixels for all epochs, at the bounded size of `cache_size`: in memory, which
    all worker processes share, or in a file on disk, which later runs use again as long as no image changes in name,
    size or modification time. `auto`: disk if all images are cached already, else none for fewer than two epochs, else
    memory if half of what is available is enough, else disk if half of what is free is, else none. Only training reads
    it; evaluations and monitors don't."""
    cache_size: int = Field(default=256, ge=8, json_schema_extra=WARN)
    """Maximum shorter side of a cached image, in pixels: larger images are reduced to it, and crops come from the
    smaller version, so small crops of large photographs are less sharp. Smaller images stay as they are. 256 suits
    views of 224 pixels; an image takes 0.26 MB at 4:3."""
    cache_dir: Path | None = Field(default=None, json_schema_extra=FREE)
    """The folder of `cache: disk`; null: sslcli/ in `$XDG_CACHE_HOME` or ~/.cache."""
    max_unreadable: float = Field(default=0.01, ge=0, le=1, json_schema_extra=FREE)
    """The run ends if more than this fraction of the images, and more than one, cannot be read (0: if any cannot);
    otherwise such images are replaced."""


class FileDataset(Dataset):
    """Images in individual files, which are found when it is opened and decoded one by one."""

    options: FileOptions

    def _set(
        self, name: str, folder: Path, files: Sequence[str], labels: Tensor | None, classes: Sequence[str] | None
    ) -> None:
        """Takes what was found: `files` relative to `folder`, and their labels.

        The option `limit` is applied here, since only the images that are used are measured for their statistics.
        """
        limit, channels = self.options.limit, self.options.channels
        chosen = fixed_choice(len(files), limit, labels)
        self.labels = None if labels is None else labels[chosen]
        self.folder = folder
        self.files = PathList([files[index] for index in chosen.tolist()])
        mean, std = IMAGENET[channels]
        if self.options.normalization == "measured" and self.options.mean is None:  # a given one needs no measuring
            mean, std = measure(folder, self.files, channels)
        self.info = DataInfo(name, channels, None, mean, std, None if classes is None else tuple(classes))
        highest = highest_value(folder / file for file in self.files[:: max(1, len(self.files) // _LOOKED_AT)])
        if highest is not None and highest < 1 << 13:
            log.warning(
                f"data: the 16-bit images in {folder} have no value above {highest:,} of 65,535 (12 bits?) and will "
                "be nearly black: only the higher byte is read; scale them to the full range"
            )

    def _set_labeled(self, name: str, folder: Path, train: Path | None = None) -> None:
        """Takes the images of a folder with a subfolder for each class; labels are those of `train` if it exists.

        Raises:
            UserError: if there are no such folders, no images in one of them, or a class that `train` lacks.
        """
        found = _classes(folder)
        classes = _classes(train) if train is not None and train.is_dir() else found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise UserError(
                f"data.root: {folder} has the class folder {unknown[0]!r}, which {train} does not have; both need the "
                "same names"
            )
        files: list[str] = []
        labels: list[int] = []
        beside = sum(file.is_file() for file in folder.glob("[!.]*") if file.name.lower().endswith(EXTENSIONS))
        skipped: Counter[str] = Counter({"images outside the class folders": beside} if beside else {})
        for each in found:
            images = [f"{each}/{file}" for file in image_files(folder / each, skipped, folder)]
            if not images:
                raise UserError(
                    f"data.root: no images ({KINDS}) in the class folder {folder / each}; remove it, or set "
                    "data.name=images to read a tree of images without labels"
                )
            files += images
            labels += [classes.index(each)] * len(images)
        self.skipped = skipped
        self._set(name, folder, files, torch.tensor(labels), classes)

    @classmethod
    def channel_count(cls, options: DatasetOptions) -> int:
        assert isinstance(options, FileOptions)
        return options.channels

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Tensor:
        return decode(self.folder / self.files[index], self.options.channels)

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        return decode(self.folder / self.files[index], self.options.channels, wanted)

    def name_of(self, index: int) -> str:
        return self.files[index]

    def path_of(self, index: int) -> Path | None:
        return self.folder / self.files[index]


def existing(root: Path) -> Path:
    """Returns the folder with `~` expanded.

    Raises:
        UserError: if there is none.
    """
    root = expanded(root)
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root: {root} {state}; set it to the folder that holds the images")
    return root


def _classes(folder: Path) -> list[str]:
    classes = subfolders(folder)
    if not classes:
        raise UserError(
            f"data.root: no class folders in {folder}; give each class its own folder, or set data.name=images "
            "for images without labels"
        )
    return classes
