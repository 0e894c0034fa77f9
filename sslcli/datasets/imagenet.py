"""ImageNet-1k: 1.28 million training images in 1,000 classes (Russakovsky et al., *ImageNet Large Scale Visual
Recognition Challenge*, https://arxiv.org/abs/1409.0575), or any subset of its classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from sslcli.contracts.data import DatasetOptions, Part
from sslcli.contracts.errors import UserError
from sslcli.data.files import FileDataset, FileOptions, existing
from sslcli.data.paths import image_files, subfolders
from sslcli.storage import expanded

#: Where train/ and val/ may be below the root: torchvision's layout, and Kaggle's.
_LAYOUTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
#: Kaggle's list of names: a line `n01440764 tench, Tinca tinca` for each class.
_NAMES = "LOC_synset_mapping.txt"


class ImageNetOptions(FileOptions):
    split: Literal["train", "val"] = "train"
    """`train` (1,281,167 images) or `val` (50,000), each with a subfolder for each class."""


class ImageNet(FileDataset):
    """ImageNet, or any part of it.
    The images under train/ and val/, or Kaggle's ILSVRC/Data/CLS-LOC/, in folders named after their synsets.

    Labels follow the sorted synsets, as everywhere, those of train/ for `val` too; any number of classes will do
    (ImageNet-100, for example). With Kaggle's LOC_synset_mapping.txt in the root, classes have readable names.

    Raises:
        UserError: if a split is missing or not unpacked, has no class folders, or an empty one.
    """

    Options = ImageNetOptions
    splits = ("train", "val")
    options: ImageNetOptions
    labels: Tensor

    def __init__(self, options: ImageNetOptions) -> None:
        super().__init__(options)
        root = existing(options.root)
        base = _base(root)
        folder = base / options.split
        if not folder.is_dir():
            raise UserError(_missing(root, base, options.split))
        if options.split == "val" and not subfolders(folder) and next(image_files(folder), None) is not None:
            raise UserError(
                f"data.split: the images of {folder} are not in class folders, so they have no labels; move each "
                f"into a folder named after its synset, as in {base / 'train'} (the devkit and Kaggle's "
                "LOC_val_solution.csv list them)"
            )
        self._set_labeled("imagenet", folder, base / "train")
        assert self.info.classes is not None
        self.info = replace(self.info, classes=_readable(self.info.classes, [root / _NAMES, base / _NAMES]))

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        """The splits `train` and `val`; None unless both exist. A limit applies to the split it was given for."""
        assert isinstance(options, ImageNetOptions)
        base = _base(expanded(options.root))
        if not ((base / "train").is_dir() and (base / "val").is_dir()):
            return None
        if part == "train" and options.split == "train":
            return options
        return options.model_copy(update={"split": "train" if part == "train" else "val", "limit": None})


def _base(root: Path) -> Path:
    """The folder that holds train/ and val/; the root itself if neither is found."""
    for layout in _LAYOUTS:
        if (root / layout / "train").is_dir() or (root / layout / "val").is_dir():
            return root / layout
    return root


def _missing(root: Path, base: Path, split: str) -> str:
    archive = root / f"ILSVRC2012_img_{split}.tar"
    if archive.exists():
        return (
            f"data.root: {archive} is not unpacked; torchvision does it, with the devkit's archive in the same folder: "
            f'python -c "from torchvision.datasets import ImageNet; ImageNet({str(root)!r}, {split!r})"'
        )
    other = "val" if split == "train" else "train"
    if (base / other).is_dir():
        return f"data.split: {split!r} needs {split}/ in {base}, which has only {other}/; put it there"
    return (
        f"data.root: no train/ or val/ in {root}, nor in {_LAYOUTS[1]} below it; set it to the folder that holds "
        "ImageNet's images as torchvision or Kaggle lay them out (data.name=folder reads any other tree of classes)"
    )


def _readable(synsets: Sequence[str], lists: Sequence[Path]) -> tuple[str, ...]:
    """The first word for each synset, with the synset if two have the same word (the two cranes)."""
    words: dict[str, str] = {}
    file = next((file for file in lists if file.is_file()), None)
    if file is not None:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        words = {line.partition(" ")[0]: line.partition(" ")[2].split(",")[0].strip() for line in lines}
    names = [words.get(synset) or synset for synset in synsets]
    shared = Counter(names)
    named = zip(synsets, names, strict=True)
    return tuple(name if shared[name] == 1 else f"{name} ({synset})" for synset, name in named)
