"""Opens a dataset of torchvision, with a clear message if its files are missing or damaged."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from sslcli.contracts.errors import UserError
from sslcli.storage import expanded


def open_files(name: str, title: str, root: Path, download: bool, **arguments: Any) -> Any:
    """Returns torchvision's dataset `name` of `root`, after downloading missing files if `download` is set.

    `title` is its name in messages.

    Raises:
        UserError: if the files are not there, damaged, or cannot be downloaded.
    """
    from torchvision import datasets  # takes seconds to import

    reader, root = getattr(datasets, name), expanded(root)
    folder = root / reader.base_folder
    try:
        return reader(str(root), **arguments)
    except (RuntimeError, OSError) as error:
        if not download:
            state = f"damaged or incomplete {title} files" if folder.exists() else f"no {title}"
            raise UserError(
                f"data.root: {state} in {folder}; set data.download=true to download it, or data.root to the folder "
                f"that holds {folder.name}/"
            ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            return reader(str(root), **arguments, download=True)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.download: {title} could not be downloaded to {folder} ({reason}); try again, or put the files of "
            f"{reader.filename} there yourself"
        ) from error
