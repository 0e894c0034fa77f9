"""Processes live and die together: launchers, ranks and workers that are killed, stopped or lose their console."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from run_helpers import assert_same_end, newest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SSL = [sys.executable, "-m", "sslcli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG = ["training.epochs=3000", "checkpoints.every_epochs=null", "checkpoints.every_steps=null"]
ODD = """
import os, signal, time
from pathlib import Path

from sslcli import distributed
from sslcli.contracts.callback import Callback
from sslcli.contracts.options import Options


class OddOptions(Options):
    number: int = 0
    rank: int = 1
    step: int = 5


class Odd(Callback):
    Options = OddOptions

    def on_step(self, context):
        options, mark = self.options, Path("odd-was-here")
        if context.progress.step == options.step and distributed.rank() == options.rank and not mark.exists():
            mark.touch()
            if options.number:
                os.kill(os.getpid(), options.number)
            while True:
                time.sleep(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "odd.py").write_text(ODD)
    return tmp_path


def start(folder: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SSL, "train", "tiny.yaml", *words, "--output", "run"], cwd=folder, text=True,
        **{"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, seconds: float = 240.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def has_begun(folder: Path) -> bool:
    log = folder / "run" / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["SIGKILL", "SIGHUP"])
def test_processes_save_and_end_with_their_launcher(folder: Path, number: int) -> None:
    launcher = start(folder, *LONG, "--devices", "2", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: has_begun(folder))
    ranks = children(launcher.pid)
    assert len(ranks) == 2
    launcher.send_signal(number)
    assert wait_until(lambda: not any(map(is_alive, ranks)), 60)
    assert launcher.wait(60) == (129 if number == signal.SIGHUP else -number)
    assert newest(folder / "run").step > 0


def test_nohup_keeps_a_group_training(folder: Path) -> None:
    words = ["nohup", *SSL, "train", "tiny.yaml", *LONG[1:], "training.epochs=200", "--devices", "2", "--output", "run"]
    launcher = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert wait_until(lambda: has_begun(folder))
    for pid in [launcher.pid, *children(launcher.pid)]:
        os.kill(pid, signal.SIGHUP)
    assert launcher.wait(600) == 0, launcher.communicate()
    assert (folder / "run" / "backbone.safetensors").exists()


def test_torchruns_processes_save_and_end_with_it(folder: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SSL[1:], "train", "tiny.yaml"]
    null = subprocess.DEVNULL
    agent = subprocess.Popen(
        [sys.executable, *words, *LONG, "--output", "run"], cwd=folder, env=ENVIRONMENT, stdout=null, stderr=null
    )
    assert wait_until(lambda: has_begun(folder))
    ranks = children(agent.pid)
    agent.kill()
    agent.wait()
    assert wait_until(lambda: not any(map(is_alive, ranks)), 60)
    # The group's store ends with torchrun, which may come before the save; what was saved before is intact.
    assert not (folder / "run" / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (
            f"number: {int(signal.SIGKILL)}",
            "rank 1 died (pid {pid}, killed by SIGKILL): most likely from lack of memory",
        ),
        (f"number: {int(signal.SIGSTOP)}, rank: 0", "rank 0 (pid {pid} on "),
        ("number: 0", "rank 1 (pid {pid} on "),
    ],
    ids=["killed", "stopped", "asleep"],
)
def test_a_rank_that_dies_or_hangs_is_one_line(folder: Path, odd: str, said: str) -> None:
    words = [f"callbacks.odd={{{odd}}}", "--plugin", "odd.py", "training.stall_timeout=6", "--devices", "2", "--quiet"]
    launcher = start(folder, *words)
    assert wait_until(lambda: len(children(launcher.pid)) == 2)
    pid = children(launcher.pid)["rank: 0" not in odd]
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("ssl: " + said.format(pid=pid))


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_restarted_run_ends_with_the_weights_of_one_that_was_not_disturbed(folder: Path, devices: str) -> None:
    odd = f"callbacks.odd={{number: {int(signal.SIGKILL)}, rank: {int(devices) - 1}, step: 8}}"
    words = ["checkpoints.every_steps=3", odd, "--plugin", "odd.py", "--devices", devices]
    disturbed = start(folder, *words, "--max-restarts", "2")
    _, err = disturbed.communicate(timeout=600)
    assert disturbed.returncode == 0, err
    (line,) = [line for line in err.splitlines() if "restart 1 of 2" in line]
    assert line.startswith("warning: restart 1 of 2, from step 6: ")
    assert "killed by SIGKILL" in line
    (folder / "run").rename(folder / "disturbed")
    whole = start(folder, *words)
    _, err = whole.communicate(timeout=600)
    assert whole.returncode == 0, err
    assert_same_end(folder / "disturbed", folder / "run")


@pytest.mark.parametrize("console", ["2>&1 | head -1", ">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_run_without_a_console_goes_on_to_its_end(folder: Path, console: str, devices: str) -> None:
    ssl = " ".join(SSL)
    line = f"({ssl} train tiny.yaml callbacks.progress.every_seconds=0 --devices {devices} --output run; echo $? >code)"
    subprocess.run(["bash", "-c", f"{line} {console}"], cwd=folder, env=ENVIRONMENT, check=False, timeout=600)
    assert (folder / "run" / "backbone.safetensors").exists()
    starts = json.loads((folder / "run" / "environment.json").read_text())["starts"]
    assert starts[-1]["end"]["state"] == "done"
    assert (folder / "code").read_text() == "0\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_never_comes_is_noticed_in_time(folder: Path, rank: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    alone = start(folder, "training.stall_timeout=3", "--quiet", env=ENVIRONMENT | group)
    _, err = alone.communicate(timeout=300)
    assert alone.returncode == 1
    assert err.endswith("not all 2 processes have joined it within 60 s\n")
    assert not (folder / "run").exists()
