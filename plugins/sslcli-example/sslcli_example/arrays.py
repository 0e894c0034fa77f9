"""A dataset in NumPy files: `root/train/images.npy`, (N, H, W, C) uint8, and beside it `labels.npy`, (N,) integers.

`root/test/` holds the test images in the same way. Without `labels.npy` you can train but not evaluate.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part, RootedOptions, channel_statistics
from sslcli.contracts.errors import UserError


class ArraysOptions(RootedOptions):
    """Options of a dataset in NumPy files."""

    split: Literal["train", "test"] = "train"
    """Which folder of `root` to read: `train` or `test`."""


class Arrays(Dataset):
    """Images of one size, all kept in memory and normalized with their own statistics.

    Raises:
        UserError: if a file is missing or has another content.
    """

    Options = ArraysOptions
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    options: ArraysOptions

    def __init__(self, options: ArraysOptions) -> None:
        super().__init__(options)
        folder = _folder(options)
        array = _read(folder / "images.npy")
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not len(array):
            raise UserError(
                f"data.root: {folder / 'images.npy'} holds {array.dtype} {array.shape}; save uint8 (N, H, W, 1 or 3)"
            )
        images = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
        self.labels, classes = _labels(options, len(images))
        self._images = images
        mean, std = channel_statistics(images)
        self.info = DataInfo("arrays", images.shape[1], (images.shape[2], images.shape[3]), mean, std, classes)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def images(self) -> Tensor:
        return self._images

    @classmethod
    def view_size(cls, options: DatasetOptions) -> int:
        return 32

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        found = super().labeled(options, part)
        has_labels = isinstance(found, ArraysOptions) and (_folder(found) / "labels.npy").is_file()
        return found if has_labels else None


def _folder(options: ArraysOptions) -> Path:
    return options.root.expanduser() / options.split


def _read(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"data.root: there is no {path}; save the images there, or set data.root") from None
    except (OSError, ValueError) as error:
        raise UserError(f"data.root: {path} cannot be read ({error}); save it again with numpy.save") from error
    return array


def _labels(options: ArraysOptions, count: int) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels of the split, and names for the classes of the training split, which both splits share."""
    path = _folder(options) / "labels.npy"
    if not path.is_file():
        return None, None
    array = _read(path)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise UserError(f"data.root: {path} holds {array.dtype} {array.shape}; save {count} integers, one per image")
    train = options.root.expanduser() / "train" / "labels.npy"
    classes = int((_read(train) if train.is_file() else array).max()) + 1
    if array.min() < 0 or array.max() >= classes:
        raise UserError(
            f"data.root: {path} has labels {array.min()} to {array.max()}; the classes are 0 to {classes - 1}"
        )
    return torch.from_numpy(array.astype(np.int64)), tuple(str(number) for number in range(classes))
