"""Runs `ssl` in forks of this process, which has imported torch: a start takes a tenth of a second instead of several.

Before it forks, the process only imports: it has one thread and has computed nothing, so a fork of it is like a new
process.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

HERE = Path(__file__).parent
#: What the commands import when they run.
_NEEDED = ("sslcli.cli.main", "sslcli.training.train", "sslcli.training.group", "sslcli.evaluation.evaluate",
           "sslcli.evaluation.export", "torchvision", "torch.utils.data", "torch.utils.tensorboard")  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """When a signal ends a process: `delay` seconds after its start, or at its `call`-th call that changes a file whose
    path contains `part`; `torn` in 0..255 is the share of a write's bytes that comes before. `ranks` get it."""

    number: int
    delay: float | None = None
    part: str = ""
    call: int = 0
    torn: int = 0
    ranks: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Ended:
    """How a start ended: exit code (negative: a signal's number) and messages of each rank, the calls that were
    reported, the sessions of its processes, and whether any had to be killed after `timeout` seconds."""

    codes: tuple[int, ...]
    messages: tuple[str, ...]
    calls: tuple[str, ...]
    sessions: tuple[int, ...]
    seconds: float
    timed_out: bool

    @property
    def code(self) -> int:
        return next((code for code in self.codes if code), 0)


def main_environment() -> dict[str, str]:
    """Returns the environment of the process that forks: one thread, and the library that counts writes; builds it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        raise SystemExit("ssl soak: kills at writes need Linux and a C compiler")
    library = Path(mkdtemp(prefix="soak-library-")) / "writes.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "writes.c"), "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def prepare() -> None:
    """Imports what the commands need; SystemExit if a thread has been started."""
    library = os.environ.pop("LD_PRELOAD")  # loaded already, and nothing for other programs
    shutil.rmtree(Path(library).parent)
    from sslcli.plugins import GROUPS, find, load_found

    for module in _NEEDED:
        importlib.import_module(module)
    for group in GROUPS:
        for plugin in find(group):
            if plugin.package == "sslcli":
                load_found(plugin)
    if len(os.listdir("/proc/self/task")) != 1:
        raise SystemExit("ssl soak: importing has started a thread; forks of this process would lack it")


def ssl(
    words: Sequence[object],
    folder: Path,
    kill: Kill | None = None,
    *,
    processes: int = 1,
    count: bool = False,
    timeout: float = 120,
) -> Ended:
    """Runs `ssl WORDS` in forks, each rank in a session of its own, in `folder`, and waits for all of them.

    With `count`, the calls of rank 0 that change a file in `folder` are reported; else the one at which a kill came.
    """
    began = time.monotonic()
    report = folder.parent / f"{folder.name}.calls"
    report.unlink(missing_ok=True)
    outputs = [folder.parent / f"{folder.name}.{rank}.txt" for rank in range(processes)]
    for output in outputs:  # a process may be killed before it opens its own
        output.touch()
    port = _free_port() if processes > 1 else 0
    children: dict[int, int] = {}
    sys.stdout.flush()
    for rank in range(processes):
        armed = kill if kill is not None and rank in kill.ranks else None
        pid = os.fork()
        if pid == 0:
            _child(words, folder, rank, processes, port, outputs[rank], report, armed, count and rank == 0)
        children[pid] = rank
    codes: dict[int, int] = {}

    def send(number: int, ranks: Collection[int]) -> None:
        for pid, rank in children.items():
            if rank in ranks and rank not in codes:
                os.kill(pid, number)

    timed = kill is not None and kill.delay is not None
    timed_out = False
    try:
        while len(codes) < processes:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in children:
                codes[children[pid]] = os.waitstatus_to_exitcode(status)
                continue
            spent = time.monotonic() - began
            if timed and spent >= kill.delay:
                timed = False
                send(kill.number, kill.ranks)
            if spent > timeout and not timed_out:
                timed_out = True
                send(signal.SIGKILL, range(processes))
            time.sleep(0.003)
    except BaseException:
        send(signal.SIGKILL, range(processes))
        raise
    calls = report.read_text().splitlines() if report.exists() else []
    messages = tuple(output.read_text(encoding="utf-8", errors="replace") for output in outputs)
    ordered = tuple(codes[rank] for rank in range(processes))
    return Ended(ordered, messages, tuple(calls), tuple(children), time.monotonic() - began, timed_out)


def _child(
    words: Sequence[object],
    folder: Path,
    rank: int,
    processes: int,
    port: int,
    output: Path,
    report: Path,
    kill: Kill | None,
    count: bool,
) -> None:
    """The forked process; does not return."""
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup` and `&` have signals ignored
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(file), "w", buffering=1, errors="backslashreplace") for _ in "12")
        os.chdir(folder)
        if processes > 1:
            named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ.update({name: str(value) for name, value in named.items()} | address)
        if count or (kill is not None and kill.call):
            found = kill or Kill(0)
            handle = os.open(report, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            arm = ctypes.CDLL(None).soak_arm
            arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, *[ctypes.c_int] * 3]
            arm(os.fsencode(f"{folder}/"), found.part.encode(), found.call, found.number, found.torn, handle)
        sys.argv = ["ssl", *map(str, words)]
        importlib.import_module("sslcli.cli.main").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        importlib.import_module("traceback").print_exc()
        code = 1
    finally:  # what a process does at its end, without going back to what this one was forked from
        atexit._run_exitfuncs()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def left_behind(sessions: Sequence[int], seconds: float = 20) -> list[int]:
    """Returns the processes of these sessions that live on after so many seconds."""
    ends = time.monotonic() + seconds
    while (found := [pid for pid, session in _living() if session in sessions]) and time.monotonic() < ends:
        time.sleep(0.1)
    return found


def _living() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                status = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if status[0] not in "ZX":
                yield int(entry), int(status[3])


@contextmanager
def scratch(where: Path | None = None) -> Iterator[Path]:
    """An empty folder for a block, removed afterwards: always one that this function has made."""
    folder = Path(mkdtemp(prefix="soak-", dir=where)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
