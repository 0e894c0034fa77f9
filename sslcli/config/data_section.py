"""What a `data:` section may leave out: the images of a folder need no name of a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sslcli.plugins import PYTHON, find, suggest

from .problems import Problems

#: The dataset that a folder is read with.
IMAGES = "images"


def named(value: Any) -> Any:
    """Returns a `data:` section with the name of its dataset: for a folder, or `root` alone, it is `images`.

    The name of a dataset comes before a folder of this name. Whatever else is no section, or has no name, stays.
    """
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict):
        return value
    given = {key: each for key, each in section.items() if each is not None}
    name = given.get("name")
    if name is None and "root" in given:
        return {**given, "name": IMAGES}
    if isinstance(name, str) and is_folder(name):
        return {"root": name, **given, "name": IMAGES}
    return value


def found(value: Any, problems: Problems) -> Any:
    """Returns a section as `named` does; None after adding a problem, if it names neither a dataset nor a folder."""
    section = named(value)
    name = section.get("name") if isinstance(section, dict) else section
    if not isinstance(name, str) or _is_dataset(name):
        return section
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):
        message = f"{name} is a file; give the folder that holds the images"
    elif "/" in name or name.startswith(("~", ".")):
        message = f"no such folder: {path}"
    else:
        known = sorted({plugin.name for plugin in find("datasets")})
        near = suggest(name, known) or f"; give the folder that holds the images, or one of {', '.join(known)}"
        message = f"unknown dataset {name!r}{near}"
    problems.add(("data", "name"), message)
    return None


def is_folder(name: str) -> bool:
    """Returns whether a name is that of a folder, and not of a dataset."""
    return not _is_dataset(name) and os.path.isdir(os.path.expanduser(name))


def _is_dataset(name: str) -> bool:
    """Whether a name is that of a dataset: `NAME`, `PACKAGE:NAME`, or what stands for a Python object."""
    package, _, plain = name.rpartition(":")
    names = {plugin.name for plugin in find("datasets")}
    return package == PYTHON or (plain in names and "/" not in package)
