"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32 × 32 pixels in 10 or 100 classes (Krizhevsky, *Learning Multiple
Layers of Features from Tiny Images*, 2009), read through torchvision."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, RootedOptions
from sslcli.data.torchvision_files import open_files

#: Per channel over all pixels of the 50,000 training images, from `channel_statistics`.
MEAN = (0.491400, 0.482158, 0.446531)
STD = (0.247032, 0.243485, 0.261588)

#: The same for CIFAR-100, as usually published.
MEAN_100 = (0.507076, 0.486549, 0.440918)
STD_100 = (0.267334, 0.256438, 0.276150)


class CIFAR10Options(RootedOptions):
    split: Literal["train", "test"] = "train"
    """`train` (50,000 images) or `test` (10,000)."""
    download: bool = False
    """Download the data (170 MB) to `root` if it is not there."""


class CIFAR10(Dataset):
    """CIFAR-10: 60,000 images of 32 px in 10 classes.
    The images in the order of the original files; all of them are kept in memory (180 MB).

    Raises:
        UserError: if the data is not in `root`, or damaged.
    """

    Options = CIFAR10Options
    splits = ("train", "test")
    options: CIFAR10Options
    labels: Tensor

    _reader: ClassVar[str] = "CIFAR10"
    _title = "CIFAR-10"
    _statistics = (MEAN, STD)

    def __init__(self, options: CIFAR10Options) -> None:
        super().__init__(options)
        files = open_files(self._reader, self._title, options.root, options.download, train=options.split == "train")
        self.labels = torch.tensor(files.targets, dtype=torch.int64)
        self._images = torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous()
        name = self._title.lower().replace("-", "")
        self.info = DataInfo(name, 3, (32, 32), *self._statistics, classes=tuple(files.classes))

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def images(self) -> Tensor:
        return self._images

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        return 32


class CIFAR100(CIFAR10):
    """CIFAR-100: 60,000 images of 32 px in 100 classes.
    The same with 100 classes (the fine labels)."""

    _reader = "CIFAR100"
    _title = "CIFAR-100"
    _statistics = (MEAN_100, STD_100)
