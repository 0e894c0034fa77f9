"""How the program ends: the lines of an error."""

from __future__ import annotations

import sys

from sslcli.contracts.errors import SslError


def report(error: SslError | OSError) -> None:
    """Shows an error on stderr: a line for each problem, whatever is in the names that it has."""
    from sslcli.logs import shown

    if isinstance(error, SslError):
        lines = error.lines
    else:  # a full disk, a deleted folder: the system's own message is clear
        lines = [f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)]
    for line in filter(None, lines):
        print(f"ssl: {shown(line)}", file=sys.stderr)
