"""The dataset `images`: all image files below a folder, without labels."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from sslcli.contracts.data import DatasetOptions, Part
from sslcli.contracts.errors import UserError
from sslcli.data.files import KINDS, FileDataset, FileOptions, existing
from sslcli.data.paths import image_files, skipped_files


class ImagesOptions(FileOptions):
    split: Literal["all"] = "all"
    """`all`, the only split."""


class Images(FileDataset):
    """All image files below a folder, at any depth, without labels.

    Raises:
        UserError: if there are none.
    """

    Options = ImagesOptions
    splits = ("all",)
    options: ImagesOptions

    def __init__(self, options: ImagesOptions) -> None:
        super().__init__(options)
        root = existing(options.root)
        skipped: Counter[str] = Counter()
        files = list(image_files(root, skipped))
        self.skipped = skipped
        if not files:
            only = f" ({skipped_files(skipped)})" if skipped else ""
            raise UserError(
                f"data.root: no images ({KINDS}) in {root} or below{only}; set it to a folder that has some"
            )
        self._set("images", root, files, None, None)

    @classmethod
    def labeled(cls, options: DatasetOptions, part: Part) -> DatasetOptions | None:
        return None
