"""The example configs, which are in the package and named without a path: `quickstart`, `images/simclr`."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from pathlib import Path

from sslcli.contracts.errors import UserError
from sslcli.plugins import suggest

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Returns the folder of the example configs: in an installed package its own, in a clone `examples/configs`."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "examples" / "configs"


def names() -> list[str]:
    """Returns the names of all example configs, those without a folder first."""
    found = [path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml")]
    return sorted(found, key=lambda name: ("/" in name, name))


def meaning(name: str) -> str:
    """Returns what an example config is for, in at most 100 characters: how the comment at its top begins."""
    lines = (folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    words = " ".join(line.removeprefix("# ") for line in comment if "$schema" not in line)  # which is for editors
    return textwrap.shorten(re.split(r"[;.](?= )|\.$", words)[0], 100, placeholder=" …")


def example(config: Path) -> Path | None:
    """Returns the file of the example config of this name, with or without `.yaml`; None if there is none."""
    name = config.as_posix().removesuffix(".yaml")
    return folder() / f"{name}.yaml" if name in names() else None


def locate(config: Path) -> Path:
    """Returns the file that a CONFIG means: the one of this path if there is one, else the example of this name.

    Raises:
        UserError: there is neither, or it is a directory.
    """
    config = Path(os.path.expanduser(config))
    found = None if config.is_file() else example(config)
    if found is None and not config.exists():
        near = suggest(config.as_posix().removesuffix(".yaml"), names())
        raise UserError(
            f"{config}: no such file{near or ', and no example config of this name'}; see `ssl list configs`"
        )
    if config.is_dir() and found is None:
        raise UserError(
            f"{config}: is a directory, not a config; to train on the images in it write: method=simclr data={config}"
        )
    return found or config


def shown(path: Path) -> str:
    """Returns how messages name a config file: an example by its name, any other by its path."""
    return f"example {path.relative_to(folder()).as_posix()}" if path.is_relative_to(folder()) else str(path)
