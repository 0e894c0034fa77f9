"""Nobody is left behind: a process of a group ends with its launcher, and a worker with the process that it works for,
however that one ends, by SIGKILL too."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

#: The descriptor of a pipe whose other end the launcher alone holds: it ends when the launcher does.
PIPE = "SSLCLI_LAUNCHER_PIPE"
#: The exit code, for the launcher alone, of a failure that a new start may not meet again.
AGAIN = 88
#: Seconds that a process whose launcher is gone has for its step and its checkpoint.
GRACE = 8.0
#: Of Linux's <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1

_watched = False
_launched = False


def launched() -> bool:
    """Returns whether `ssl train --devices` or `--max-restarts` has started this process and reports its end."""
    return _launched


def failed(code: int) -> int:
    """Returns the exit code of a failure that a new start may not meet again: `code`, unless there is a launcher."""
    return AGAIN if _launched else code


def end_with_launcher() -> None:
    """Lets this process save and end as on SIGTERM when its launcher ends, ours or torchrun's: within `GRACE`.

    Does nothing in a process that has none, and when it is called again.
    """
    global _watched, _launched
    if _watched:
        return
    _watched = True
    pipe = os.environ.pop(PIPE, None)  # not for the programs that this one starts
    if pipe is not None:
        _launched = True
        _in_thread(lambda: _read_to_the_end(int(pipe)), _save_and_end)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()
        _in_thread(lambda: _wait_for_other_parent(parent), _save_and_end)


def end_with_parent() -> None:
    """Lets this process, a worker of `multiprocessing`, be killed when the one that it works for ends.

    On Linux the kernel kills it. Elsewhere, and for one that had ended before, a thread does.
    """
    parent, before = multiprocessing.parent_process(), os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != before:  # it ended before the kernel knew
            _kill()
    if parent is not None:
        _in_thread(lambda: multiprocessing.connection.wait([parent.sentinel]), _kill)


def _in_thread(wait: Callable[[], object], then: Callable[[], None]) -> None:
    def run() -> None:
        wait()
        then()

    threading.Thread(target=run, daemon=True, name="orphans").start()


def _read_to_the_end(pipe: int) -> None:
    while os.read(pipe, 1):
        pass


def _wait_for_other_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)


def _save_and_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    _kill()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
