"""What foreign code (a plugin, a library) must not decide: what stands on stdout, and how the program ends.

stdout carries results alone, through `show`; whatever else is printed there goes to stderr. Whatever a plugin raises is
its own failure, `sys.exit` and KeyboardInterrupt too, which is told from the user's Ctrl-C.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from sslcli.contracts.errors import PluginError

log = logging.getLogger(__name__)

#: Where results go while a command runs; and the descriptor of that stream in a program of its own.
_results: TextIO | None = None
_descriptor: int | None = None
#: Whether each Ctrl-C raises `CtrlC` now, so that a plain KeyboardInterrupt is a plugin's.
_known = False


class CtrlC(KeyboardInterrupt):
    """The user's; that of a plugin is a plain KeyboardInterrupt."""


@contextmanager
def ctrl_c_known() -> Iterator[None]:
    """Lets the user's Ctrl-C raise `CtrlC` in the block, unless the program has a handler of its own."""
    global _known
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not main or handler not in (signal.default_int_handler, signal.SIG_IGN):
        yield
        return
    before, _known = _known, True
    if handler is not signal.SIG_IGN:  # as in a shell's background, where it is nobody's
        signal.signal(signal.SIGINT, _pressed)
    try:
        yield
    finally:
        _known = before
        if signal.getsignal(signal.SIGINT) is _pressed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _pressed(*arguments: Any) -> NoReturn:
    raise CtrlC


def is_ctrl_c(error: BaseException) -> bool:
    """Returns whether an error is the user's Ctrl-C, as far as this is known."""
    return isinstance(error, CtrlC) or (isinstance(error, KeyboardInterrupt) and not _known)


@contextmanager
def failures(of: str) -> Iterator[None]:
    """Makes a PluginError, `OF: REASON`, of whatever foreign code raises in the block; a Ctrl-C stays one."""
    with ctrl_c_known():
        try:
            yield
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            raise PluginError(f"{of}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Returns an error in one line: `KeyError: 'width'`."""
    name, text = type(error).__name__, ""
    with suppress(Exception):  # it is foreign code that makes the text
        text = str(error)
    return f"{name}: {text}".splitlines()[0].rstrip(": ")


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Shows each warning of a library in a block once, as one line: torch's with `--verbose` only."""
    before, seen = warnings.showwarning, set[str]()

    def show_one(message: object, category: type[Warning], filename: str, *more: Any, **others: Any) -> None:
        text = f"{category.__name__}: {message}".strip().splitlines()[0][:200]
        if text not in seen:
            seen.add(text)
            own = {"torch", "torchvision", "sslcli"} & {*Path(filename).parts}  # torch blames its caller
            log.log(logging.DEBUG if own else logging.WARNING, text)

    warnings.showwarning = show_one
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def only_results() -> Iterator[None]:
    """Sends what a block prints to stderr; `show` prints to stdout."""
    global _results
    before, _results = _results, results()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def results() -> TextIO:
    """Returns the stream for results: stdout, whatever `sys.stdout` is at the moment."""
    return _results or sys.stdout


def show(text: str, end: str = "\n") -> None:
    """Prints a result, at once: messages on stderr keep their place after it.

    Raises:
        OSError: stdout does not take it (`ssl list > FILE` on a full disk); a closed pipe is a BrokenPipeError.
    """
    stream = results()
    try:
        print(text, end=end, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would be tried again at the end, where Python tells it in its own words.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        error.filename = "stdout"
        raise


def keep_stdout() -> None:
    """Makes descriptor 1, which libraries and child processes write to, another name of stderr; `sys.stdout` is then
    the only way to the real one. For a program of its own, at its start."""
    global _descriptor
    stream = sys.stdout
    with suppress(OSError, ValueError):  # one of them is closed: then nothing is mixed up
        if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != 1:
            return
        os.fstat(2)
        own = os.dup(1)
        os.dup2(2, 1)
        _descriptor = own
        sys.stdout = open(  # noqa: SIM115  # until the end of the program
            own, "w", encoding=stream.encoding, errors=stream.errors, buffering=1 if stream.line_buffering else -1
        )


def stdout_of_children() -> int | None:
    """Returns the descriptor that a child process gets as stdout, to show results of its own; None: the inherited."""
    return _descriptor
