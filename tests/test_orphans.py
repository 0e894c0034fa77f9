"""Processes end with those that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sslcli import orphans
from sslcli.data import processes

FORK = multiprocessing.get_context("fork")


def worker(told: Connection, platform: str) -> None:
    sys.platform = platform
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    orphans.end_with_parent()
    told.send(os.getpid())
    signal.pause()  # a read that never returns


def owner(told: Connection, platform: str) -> None:
    FORK.Process(target=worker, args=(told, platform)).start()
    signal.pause()


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends within that time; one that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_worker_that_hangs_ends_with_a_killed_owner(platform: str) -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=owner, args=(there, platform))
    process.start()
    assert here.poll(30)
    pid = here.recv()
    assert not is_gone(pid, 0.1)
    process.kill()
    process.join()
    assert is_gone(pid)


def test_a_worker_whose_main_process_was_killed_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        processes._start_worker(multiprocessing.RawArray("q", 2), multiprocessing.RawArray("c", 256), 0)
        for error in (ConnectionResetError("gone"), EOFError(), ValueError("a mistake")):
            sys.excepthook(type(error), error, None)

    worker = FORK.Process(target=work)
    worker.start()
    worker.join()
    assert capfd.readouterr().err == "ValueError: a mistake\n"


RANK = """
import os, signal, time
from sslcli import orphans

signal.signal(signal.SIGTERM, {handler})
orphans.GRACE = 0.3
orphans.end_with_launcher()
assert orphans.PIPE not in os.environ
print(orphans.launched(), flush=True)
while True:
    time.sleep(0.01)
"""
SAVES = "lambda *given: (print('saved', flush=True), os._exit(7))"


@pytest.mark.parametrize(("handler", "code", "said"), [(SAVES, 7, "saved\n"), ("signal.SIG_IGN", -signal.SIGKILL, "")])
def test_a_process_saves_and_ends_when_its_launcher_is_gone_and_is_killed_if_it_does_not(handler, code, said) -> None:
    read, held = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", RANK.format(handler=handler)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, orphans.PIPE: str(read)}, pass_fds=[read],
    )  # fmt: skip
    os.close(read)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert process.poll() is None
    os.close(held)  # as the system does, whatever ends the launcher
    assert process.communicate(timeout=20)[0] == said
    assert process.returncode == code


def test_a_process_of_torchrun_notices_that_it_is_gone() -> None:
    code = RANK.format(handler=SAVES)
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    words = ["sh", "-c", '"$0" -c "$1" & wait', sys.executable, code]
    agent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert agent.stdout is not None
    assert agent.stdout.readline() == "False\n"
    agent.kill()
    assert agent.stdout.read() == "saved\n"  # until the process has closed it
    agent.wait()
