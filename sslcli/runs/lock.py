"""The lock of a run directory: held by one process, and not by what it starts or forks.

Without that, a data worker that outlives a killed main process would keep the run from being resumed.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from sslcli.contracts.errors import UserError


class RunLock:
    """An exclusive lock on a file, which is made if there is none, until `close` or the end of the process.

    Where the file system has no locks, as some network ones, it locks nothing.

    Raises:
        UserError: another process has it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "rb+", buffering=0)
        _held.add(self)
        for again in (True, True, False):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if again:  # `ssl runs` holds it for a moment to see whether it is free
                    time.sleep(0.05)
                    continue
                self.close()
                raise UserError(f"{path.parent}: another process is training this run") from None
            except OSError:
                pass
            return

    def close(self) -> None:
        """Frees it; in a forked process, which only has another handle of it, the parent keeps it."""
        self._file.close()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)
