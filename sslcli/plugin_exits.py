"""A plugin that ends the program, by `sys.exit`, `os._exit` or its own KeyboardInterrupt, has failed, and is named."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from sslcli.contracts.errors import SslError
from sslcli.foreign import ctrl_c_known, is_ctrl_c

#: Ends the process at once, also in a block that gives `os._exit` a name.
end_now = os._exit
#: How many blocks give it a name now.
_entered = 0
_unnamed = os._exit
_entering = threading.Lock()
_LIBRARY = sysconfig.get_path("stdlib")
_PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(__file__).parents[1]))
_ADVICE = "a plugin must raise an error instead, or call RunContext.stop(reason)"


def of_python(filename: str) -> bool:
    """Returns whether a file is of Python's standard library, below which installed packages may be."""
    return filename.startswith(_LIBRARY) and not filename.startswith(_PACKAGES)


@contextmanager
def named_exits() -> Iterator[None]:
    """Lets the end of the program that code in the block asks for be an error; Ctrl-C stays what it is.

    Raises:
        SslError: where the code wanted to end the program, and how.
    """
    with ctrl_c_known(), _named_os_exit():
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            own = [each for each in frames if not of_python(each.filename)] or list(frames)
            what = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else type(error).__name__
            where = f"{own[-1].filename}:{own[-1].lineno} ({own[-1].name})"
            raise SslError(f"{where} wanted to end the program, by {what}: {_ADVICE}") from error


@contextmanager
def _named_os_exit() -> Iterator[None]:
    """Of `os._exit` nothing can be caught: it says where it was called, and never ends this process with success."""
    owner = os.getpid()

    def _exit(status: int) -> NoReturn:
        if os.getpid() == owner:
            caller = sys._getframe(1)
            where = f"{caller.f_code.co_filename}:{caller.f_lineno} ({caller.f_code.co_name})"
            print(f"ssl: {where} ended the program, by os._exit({status}): {_ADVICE}", file=sys.stderr, flush=True)
            status = status or SslError.exit_code
        end_now(status)

    global _entered, _unnamed
    with _entering:
        _unnamed = os._exit if not _entered else _unnamed
        _entered += 1
        os._exit = _exit
    try:
        yield
    finally:
        with _entering:  # blocks of several threads may overlap
            _entered -= 1
            if not _entered:
                os._exit = _unnamed
