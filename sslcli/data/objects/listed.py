"""Image files that a Python program gives as a list of paths, or of pairs (path, label)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..decode import decode
from ..paths import PathList
from .items import Label, as_label


class ImageFiles:
    """A dataset of the files, read as those of a folder are; relative paths are those of when it is made.

    Attributes:
        targets: their labels; None if they have none.
        digest: 12 hex digits for the files' names, without folders, and their order.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        pairs = [(item, None) if isinstance(item, str | os.PathLike) else item for item in items]
        here = os.getcwd()
        names = [os.path.join(here, os.path.expanduser(os.fspath(path))) for path, _ in pairs]
        labels = [as_label(label) for _, label in pairs]
        self.files = PathList(names)
        self.targets = None if None in labels else labels
        self.digest = hashlib.sha256("\0".join(map(os.path.basename, names)).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self.read(index), None if self.targets is None else self.targets[index]

    def read(self, index: int, channels: int = 3, wanted: int | None = None) -> Tensor:
        """Returns `decode` of a file."""
        return decode(self.path(index), channels, wanted)

    def path(self, index: int) -> Path:
        return Path(self.files[index])


def as_dataset(value: Any) -> Any:
    """Returns a list of paths, or of pairs that begin with one, as `ImageFiles`; anything else as it is."""
    if not isinstance(value, list | tuple) or not value:
        return value
    paths = all(
        _is_path(item) or (isinstance(item, tuple | list) and len(item) == 2 and _is_path(item[0])) for item in value
    )
    return ImageFiles(value) if paths else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)
