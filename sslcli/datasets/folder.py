"""The dataset `folder`: image files in a subfolder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from sslcli.contracts.data import DatasetOptions, Part
from sslcli.contracts.errors import UserError
from sslcli.data.files import FileDataset, FileOptions, existing
from sslcli.storage import expanded

#: What the folder of the images for tests may be called; the first that is there is read.
HELD_OUT = ("val", "validation", "valid", "test")


class FolderOptions(FileOptions):
    split: Literal["auto", "train", "val", "all"] = "auto"
    """`train` reads ROOT/train, `val` ROOT/val (or ROOT/validation, valid or test), `all` ROOT itself, with its
    subfolders as classes; `auto` is `train` if ROOT has train/ and also one of these, else `all`."""


class Folder(FileDataset):
    """Images in one folder for each class, with labels.
    A subfolder for each class; labels follow the sorted class names, those of train/ for `val` too.

    Raises:
        UserError: if there are no such folders, no images in one of them, or a class in `val` that `train` lacks.
    """

    Options = FolderOptions
    splits = ("train", "val", "all")
    options: FolderOptions
    labels: Tensor

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        root = existing(options.root)
        folder = _split_folder(root, options.split)
        held_out = folder.name in HELD_OUT and folder.parent == root
        self._set_labeled("folder", folder, root / "train" if held_out else None)

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """Like `Dataset.labeled`; None unless the root has both train/ and val/ (or another of `HELD_OUT`)."""
        assert isinstance(options, FolderOptions)
        root = expanded(options.root)
        if options.split == "all" or not _has_splits(root):
            return None
        if part == "eval":
            return options.model_copy(update={"split": "val", "limit": None})
        if options.split != "val":
            return options
        return options.model_copy(update={"split": "train", "limit": None})


def _has_splits(root: Path) -> bool:
    # A folder train/ alone may be a class: pictures of trains.
    return (root / "train").is_dir() and any((root / name).is_dir() for name in HELD_OUT)


def _split_folder(root: Path, split: str) -> Path:
    if split == "auto":
        split = "train" if _has_splits(root) else "all"
    if split == "all":
        return root
    for name in HELD_OUT if split == "val" else ("train",):
        if (root / name).is_dir():
            return root / name
    wanted = "val/ (or validation/, valid/, test/)" if split == "val" else "train/"
    raise UserError(f"data.split: {split!r} needs {wanted} in {root}; set data.split=all to read {root} itself")
