"""SIGINT, SIGTERM and SIGHUP while training: finish the step, save, end. A second signal ends it immediately."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While open, stores the first signal in `number` instead of raising; a second one has its default effect.

    SIGHUP (the terminal or the connection is gone) stays ignored if it was before, as `nohup` arranges.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; in another thread (of a notebook, for example) signals are unchanged.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in signals()}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *error: object) -> None:
        self._restore()


def signals() -> list[signal.Signals]:
    """Returns those that end a run after it has saved."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]
