"""The program's stdout and stderr when they are closed, full or gone: what cannot be shown does not end the work."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

#: What a write to a terminal that is gone, or to a pipe that nobody reads, fails with: later ones would too.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


class Lenient:
    """A text stream whose writes are lost, without an error, where they cannot be made.

    A stream that is gone is replaced by the null device, also for what writes to its descriptor from other languages;
    one whose disk is full is tried again with every write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Any, *given: Any) -> None:
        try:
            work(*given)
        except UnicodeEncodeError:
            raise
        except ValueError:  # it is closed
            pass
        except OSError as error:
            if error.errno in _GONE:
                with suppress(OSError, ValueError):
                    to_null(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_null(descriptor: int) -> None:
    """Lets a descriptor, which may be closed, lead to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def open_closed() -> None:
    """Opens the null device as stdin, stdout and stderr where these are closed. Otherwise the next file that is opened,
    a checkpoint perhaps, would have their number, and get what is written to it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            to_null(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def be_lenient(*names: str) -> None:
    """Makes `stdout` or `stderr` of this process `Lenient`."""
    for name in names:
        stream = getattr(sys, name)
        if not isinstance(stream, Lenient):
            setattr(sys, name, Lenient(stream))
