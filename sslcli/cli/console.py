"""How the program ends: the lines of an error, and a stdout that takes no more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from sslcli.contracts.errors import SslError


def report(error: SslError | OSError) -> None:
    """Shows an error on stderr: a line for each problem, whatever is in the names that it has."""
    from sslcli.logs import shown

    if isinstance(error, SslError):
        lines = error.lines
    else:  # a full disk, a deleted folder: the system's own message is clear
        lines = [f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)]
    for line in lines:
        print(f"ssl: {shown(line)}", file=sys.stderr)


def flush_results() -> None:
    """Hands what was printed to the system.

    Raises:
        OSError: it does not take it (`ssl list > FILE` on a full disk); a closed pipe is a BrokenPipeError.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would be tried again at the end, where Python tells it in its own words.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = "stdout"
        raise
