"""SIGINT, SIGTERM and SIGHUP while training: finish the step, save, end. A second signal ends it immediately."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from types import FrameType
from typing import Any

#: Seconds in which further signals belong to the same event: who ends a service signals all its processes, and the
#: launcher passes on what has reached them already.
SAME = 2.0
#: What a thread has Python do in the main one, the only one that may set handlers.
_CALL = signal.SIGURG


class Interrupt:
    """While open, stores the first signal in `number` instead of raising; a second one has its default effect.

    Not within `SAME` seconds of the first, and a second SIGHUP never: a closing terminal sends several. SIGHUP (the
    terminal or the connection is gone) stays ignored if it was before, as `nohup` arranges.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; in another thread (of a notebook, for example) signals are unchanged.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in signals()}
            self._previous[_CALL] = signal.signal(_CALL, self._end_at_the_next)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        # Ignored by the system, since it is the time of arrival that counts: Python handles a signal only when the
        # main thread returns from what it computes.
        for each in self._previous.keys() - {_CALL}:
            signal.signal(each, signal.SIG_IGN)
        _thread.start_new_thread(_call_later, ())  # not of `threading`, whose lock the main thread may hold

    def _end_at_the_next(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            self._restore(self._previous.keys() - {signal.SIGHUP, _CALL})

    def _restore(self, numbers: Any) -> None:
        for number in numbers:
            signal.signal(number, self._previous[number])

    def __exit__(self, *error: object) -> None:
        self._restore(self._previous)
        self._previous = {}


def _call_later() -> None:
    time.sleep(SAME)
    _thread.interrupt_main(_CALL)


def signals() -> list[signal.Signals]:
    """Returns those that end a run after it has saved."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]
