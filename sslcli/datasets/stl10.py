"""STL-10: 113,000 photographs of 96 × 96 pixels, 100,000 of them without labels (Coates, Lee, Ng, *An Analysis of
Single-Layer Networks in Unsupervised Feature Learning*, AISTATS 2011), read through torchvision."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part, RootedOptions
from sslcli.data.subset import stratified_choice
from sslcli.data.torchvision_files import open_files

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

#: Per channel over the 5,000 training images, as usually published.
MEAN = (0.446711, 0.439810, 0.406646)
STD = (0.260341, 0.256577, 0.271267)


class STL10Options(RootedOptions):
    split: Literal["train", "test", "unlabeled", "train+unlabeled"] = "train+unlabeled"
    """`train` (5,000 images), `test` (8,000), `unlabeled` (100,000) or `train+unlabeled`; the last two have no labels
    here."""
    folds: int | None = Field(default=None, ge=0, le=9)
    """Use only the 1,000 training images of this predefined fold, 0 to 9."""
    download: bool = False
    """Download the data (2.6 GB) to `root` if it is not there."""

    @model_validator(mode="after")
    def _folds_are_of_train(self) -> Self:
        if self.folds is not None and "train" not in self.split:
            raise ValueError(f"folds are parts of the training images, which split {self.split!r} does not have")
        return self


class STL10(Dataset):
    """STL-10: 113,000 images of 96 px, most of them without labels.
    The images in the order of the original files; all of the split are kept in memory.

    Raises:
        UserError: if the data is not in `root`, or damaged.
    """

    Options = STL10Options
    splits = ("train", "test", "unlabeled", "train+unlabeled")
    options: STL10Options

    def __init__(self, options: STL10Options) -> None:
        super().__init__(options)
        files = open_files("STL10", "STL-10", options.root, options.download, split=options.split, folds=options.folds)
        labeled = options.split in ("train", "test")
        labels = torch.from_numpy(files.labels).to(torch.int64) if labeled else torch.zeros(len(files.data)).long()
        chosen = stratified_choice(labels, options.limit)  # before the copy, which may be large
        self._images = torch.from_numpy(files.data).index_select(0, chosen)
        self.labels = labels[chosen] if labeled else None
        self.info = DataInfo("stl10", 3, (96, 96), MEAN, STD, CLASSES if labeled else None)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def images(self) -> Tensor:
        return self._images

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        return 96

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """The splits `train` and `test`; a limit and a fold apply only to the split they were given for."""
        if part == "train" and options.split == "train":
            return options
        return options.model_copy(
            update={"split": "train" if part == "train" else "test", "limit": None, "folds": None}
        )
