"""Messages to the user: what the logger `sslcli` gets is shown as plain lines on stderr, by the main process alone.

Every module logs to its own logger below `sslcli`. The command line shows `INFO` and above: with
`--quiet` warnings only, with `--verbose` `DEBUG` too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

#: The one console for progress and messages, so that lines stay above the progress bar.
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
logger = logging.getLogger("sslcli")


class Lines(logging.Handler):
    """Passes every message, formatted as the user sees it, to a function."""

    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        text = shown(record.getMessage())
        self._show(f"warning: {text}" if record.levelno >= logging.WARNING else text)


def shown(text: object) -> str:
    """Returns a text, with any name in it, as one line that is safe on a terminal: what cannot be printed (control
    characters, line breaks, marks that turn the writing direction, bytes that are no UTF-8) is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: `40 s`, `12 min 5 s`, `3 h 20 min`, `2 d 3 h`."""
    left, parts = max(round(seconds), 0), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append(f"{count} {unit}" if count else "")
    first = next((number for number, part in enumerate(parts) if part), len(parts) - 1)
    return " ".join(filter(None, parts[first : first + 2])) or "0 s"


@contextmanager
def lines_to(show: Callable[[str], object] | None, level: int = logging.INFO) -> Iterator[None]:
    """Passes the messages of a block to `show`; None changes nothing."""
    if show is None:
        yield
        return
    handler, before = Lines(show), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def only_warnings() -> Iterator[None]:
    """Leaves out the other messages of a block, whose work the user has not asked for."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def on_console(level: int = logging.INFO) -> Iterator[None]:
    """Shows the messages of a block on the console, on the main process.

    Leaves them to the handlers of a program that has some on `sslcli`, and so to an outer call of this.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    handled = any(not isinstance(each, logging.NullHandler) for each in logger.handlers)
    with lines_to(console.print if is_main and not handled else None, level):
        yield
