"""CIFAR-10: 60,000 photographs of 32 × 32 pixels in 10 classes (Krizhevsky, *Learning Multiple Layers of Features from
Tiny Images*, 2009), read through torchvision."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import datasets

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, RootedOptions
from sslcli.contracts.errors import UserError

from .subset import stratified_choice

#: Per channel over all pixels of the 50,000 training images, from `channel_statistics`.
MEAN = (0.491400, 0.482158, 0.446531)
STD = (0.247032, 0.243485, 0.261588)


class CIFAR10Options(RootedOptions):
    split: Literal["train", "test"] = "train"
    """`train` (50,000 images) or `test` (10,000)."""
    download: bool = False
    """Fetch the data (170 MB) into `root` if they are not there."""


class CIFAR10(Dataset):
    """The images in the order of the original's files; all of them are kept in memory (180 MB).

    Raises:
        UserError: if `root` doesn't hold the data, or damaged ones.
    """

    Options = CIFAR10Options
    splits = ("train", "test")
    options: CIFAR10Options
    labels: Tensor

    def __init__(self, options: CIFAR10Options) -> None:
        super().__init__(options)
        files = _open(options.root.expanduser(), options.split == "train", options.download)
        labels = torch.tensor(files.targets, dtype=torch.int64)
        chosen = stratified_choice(labels, options.limit)
        self.labels = labels[chosen]
        self._images = torch.from_numpy(files.data)[chosen].permute(0, 3, 1, 2).contiguous()
        self.info = DataInfo("cifar10", 3, (32, 32), MEAN, STD, tuple(files.classes))

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def images(self) -> Tensor:
        return self._images

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        return 32


def _open(root: Path, train: bool, download: bool) -> Any:
    folder = root / datasets.CIFAR10.base_folder
    try:
        return datasets.CIFAR10(str(root), train=train)
    except (RuntimeError, OSError) as error:
        if not download:
            state = "damaged or incomplete CIFAR-10 files" if folder.exists() else "no CIFAR-10"
            raise UserError(
                f"data.root: {state} in {folder}; set data.download=true to fetch the data, or data.root to the folder "
                f"that holds {folder.name}/"
            ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return datasets.CIFAR10(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.download: CIFAR-10 could not be fetched into {folder} ({reason}); try again, or put the files of "
            f"cifar-10-python.tar.gz there yourself"
        ) from error
