"""Worker processes watched by the one that waits for them: which one died and of what, and which one does not go on."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sslcli.contracts.errors import SslError

#: Seconds without progress after which a worker, or a process of a group, is taken for hung (`training.stall_timeout`).
STALL_TIMEOUT = 600.0
#: What `reading` is given for what has no index.
NO_INDEX = -1

_REMEDY = {
    signal.SIGKILL: "most likely from lack of memory: try fewer training.workers, a smaller batch, or data.cache=disk "
    "instead of memory",
    signal.SIGBUS: "most likely since /dev/shm is full: enlarge it, or try fewer training.workers",
}

#: Bytes of a worker's last words.
_WORDS = 256

#: In a worker: where it says what it reads, where its last words go, and its number.
_own: tuple[Any, Any, int] | None = None
#: In the main process: the watches whose workers run.
_open: list[Watch] = []


def mark_in(marks: Any, words: Any, number: int) -> None:
    """Called once in a worker: makes `reading` write into the `marks` of its watch. A result that cannot be handed over
    ends the worker, with `words` that say why: multiprocessing prints a traceback and forgets it, which is a hang."""
    global _own
    _own = marks, words, number
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_not_sent)  # type: ignore[attr-defined]


def _not_sent(error: Exception, result: object) -> None:
    """Multiprocessing's hook, in the thread that sends what a worker has made."""
    if _own is not None:
        _, words, number = _own
        said = " ".join(f"{type(error).__name__}: {error}".split()).encode()[: _WORDS - 1]
        words[_WORDS * number : _WORDS * number + len(said)] = said
    os.kill(os.getpid(), signal.SIGKILL)  # not by `os._exit`, for which a plugin would be blamed


def reading(index: int = NO_INDEX) -> None:
    """Says, in a worker, that it goes on, and which image it is about to read; elsewhere does nothing."""
    if _own is not None:
        marks, _, number = _own
        marks[2 * number] += 1
        marks[2 * number + 1] = index


def waiting() -> bool:
    """Returns whether this process waits for its workers, so that they are to blame if nothing happens."""
    return any(each.waiting for each in _open)


class WorkerLost(SslError):
    """A worker died, or was killed since it did not go on."""

    passing = True


class Watch(Iterator[Any]):
    """The results of a loader's workers, one after the other; while it waits for one, a thread looks at the workers.

    Args:
        workers: how many there will be.
        timeout: seconds of waiting without any sign of the awaited worker after which it is killed; None: never.
        name_of: index → an image's name in messages, if they have names.

    Raises:
        WorkerLost: from `next`.
    """

    def __init__(self, workers: int, timeout: float | None, name_of: Callable[[int], str] | None) -> None:
        self.marks: Any = multiprocessing.RawArray("q", 2 * workers)
        self.words: Any = multiprocessing.RawArray("c", _WORDS * workers)
        self.timeout, self.name_of = timeout, name_of
        self.waiting = False
        self.results: Any = None
        self.hung: int | None = None  #: pid of the worker that was killed by the watch
        self._turn = 0  # which result is awaited
        self._closed = threading.Event()

    def open(self, results: Any) -> None:
        """Begins with torch's iterator."""
        self.results = results
        _open.append(self)
        if threading.current_thread() is threading.main_thread():
            # Torch raises from its handler, thus at any line of the program, perhaps one that expects other errors.
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and getattr(handler, "func", None) is not _on_child:
                signal.signal(signal.SIGCHLD, functools.partial(_on_child, handler))
        if self.timeout is not None:
            threading.Thread(target=self._watch, args=(self.timeout,), daemon=True, name="worker watch").start()

    def close(self) -> None:
        """Ends the workers, also one that hangs; a traceback would keep the iterator and so the processes alive."""
        self._closed.set()
        _open.remove(self)
        self.results._shutdown_workers()
        for worker in self.results._workers:
            if worker.is_alive():
                worker.kill()
                worker.join(1)  # one that the system does not let go of is not waited for

    def __next__(self) -> Any:
        self.waiting, self._turn = True, self._turn + 1
        try:
            if any(worker.exitcode for worker in self.results._workers):
                raise EOFError
            return next(self.results)
        except (RuntimeError, EOFError, OSError) as error:  # the last, since what it was sending is gone with a worker
            self.waiting = False  # the deaths of others, too, are told by their exit codes from here on
            text = str(error)
            if text.startswith("Caught") or (isinstance(error, RuntimeError) and "DataLoader worker" not in text):
                raise
            message = self._message()
            if message is None:
                raise
            raise WorkerLost(message) from error
        finally:
            self.waiting = False

    def _message(self) -> str | None:
        """What became of a worker that has died; None if none has."""
        workers = self.results._workers
        multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=10)
        for number, worker in enumerate(workers):
            if multiprocessing.connection.wait([worker.sentinel], timeout=0):
                worker.join(2)  # its pipe closes a moment before its exit code is there
            if worker.exitcode is not None:
                words = self.words[_WORDS * number : _WORDS * (number + 1)].partition(b"\0")[0].decode(errors="ignore")
                if words:
                    return f"a worker process could not hand over what it made ({words}): {remedy(words)}"
                index = self.marks[2 * number + 1]
                there = f" while it was reading {self._name(index)}" if index != NO_INDEX else ""
                if worker.pid == self.hung:
                    return (
                        f"worker process {worker.pid} hung for {self.timeout:g} s{there} and was killed: check the "
                        "disk or the network it is on, or a plugin that reads it (training.stall_timeout)"
                    )
                return f"a worker process died (pid {worker.pid}, {cause(worker.exitcode)[0]}{there}): " + (
                    cause(worker.exitcode)[1] or "try training.workers=0 to see why"
                )
        return None

    def _name(self, index: int) -> str:
        try:
            return self.name_of(index) if self.name_of is not None else f"image {index}"
        except Exception:  # of a plugin; the message matters more
            return f"image {index}"

    def _watch(self, timeout: float) -> None:
        """Adds up for how long the awaited worker has not gone on. A program that was suspended was not waiting."""
        pause, stuck, seen, before = min(timeout / 8, 5.0), 0.0, None, time.monotonic()
        while not self._closed.wait(pause):
            now, awaited = time.monotonic(), self._awaited()
            state = (self._turn, awaited, list(self.marks) if awaited is None else self.marks[2 * awaited])
            stuck = stuck + min(now - before, 2 * pause) if self.waiting and state == seen else 0.0
            seen, before = state, now
            if stuck >= timeout:
                worker = self.results._workers[awaited or 0]
                self.hung = worker.pid
                worker.kill()
                return

    def _awaited(self) -> int | None:
        """The number of the worker whose result comes next, where torch lets it be known."""
        tasks = getattr(self.results, "_task_info", {})
        found: int | None = tasks.get(getattr(self.results, "_rcvd_idx", None), (None,))[0]
        return found


def remedy(words: str) -> str:
    """Returns what to try, by what the system said about memory that processes share."""
    if "shared memory" in words or os.strerror(errno.ENOSPC) in words:
        return "/dev/shm is full; enlarge it, or try fewer training.workers (0 needs none of it)"
    return "try fewer training.workers (0 does without them)"


def cause(code: int) -> tuple[str, str]:
    """Returns what an exit code says about a process that should not have ended, and what to try (perhaps nothing)."""
    if code >= 0:
        return f"ended by itself with exit code {code}", "a plugin must raise errors, not end the process"
    number = -code
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    return f"killed by {name}", _REMEDY.get(number, "")  # type: ignore[call-overload]


def _on_child(handler: Callable[[int, Any], object], number: int, frame: Any) -> None:
    """Torch's handler where a result is awaited; elsewhere the next wait finds out."""
    try:
        handler(number, frame)
    except RuntimeError:
        if waiting():
            raise
