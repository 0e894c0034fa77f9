"""Words of commands that can be pasted into a shell, whatever is in the names."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

#: What a format of `printf` in single quotes has for these.
_FORMAT = {"\\": "\\\\", "%": "%%", "'": "\\047"}


def path_word(path: Path) -> str:
    """Returns a path as a word for a shell that no program takes for an option or a home directory."""
    text = plain_path(path)
    return shell_word(text + "/" * text.endswith("\n"))  # which a shell takes from the end of what a command printed


def plain_path(path: Path) -> str:
    """Returns a path as an argument that no program takes for an option or a home directory."""
    text = os.fspath(path)
    # `./` would be lost where a program makes a `Path` of it.
    return f"{Path.cwd()}/{text}" if text.startswith(("-", "~")) else text


def shell_word(text: str) -> str:
    """Returns a text as one word for any POSIX shell, on one line and in printable characters: others are escaped."""
    if all(each.isprintable() for each in text):
        return shlex.quote(text)
    shown = "".join(_FORMAT.get(each) or _octal(each) for each in text)
    return f"\"$(printf '{shown}')\""


def _octal(character: str) -> str:
    """A character in the format of `printf`, byte by byte if it is not printable."""
    return character if character.isprintable() else "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
