"""`ssl train` in processes of its own: kills, signals, several processes."""

from __future__ import annotations

import os
import shlex
import signal
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
LONG = ["training.epochs=60", "checkpoints.every_epochs=null", "checkpoints.every_steps=7"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def ssl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SSL, *words], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SSL, *words], cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"no step {step} after two minutes")


def test_a_run_killed_three_times_in_mid_epoch_ends_bitwise_identical(config, tmp_path):
    assert ssl("train", str(config), *LONG, "--output", "whole", cwd=tmp_path).returncode == 0
    words = ("train", str(config), *LONG, "--output", "killed", "--resume")
    for step in (18, 50, 122):
        process = start(*words, cwd=tmp_path)
        wait_for_step(tmp_path / "killed", step, process)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
    done = ssl(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming killed from step" in done.stderr
    assert newest(tmp_path / "whole").step == 240
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_with_its_code_and_the_printed_command_resumes(config, tmp_path, number, code):
    process = start("train", str(config), *LONG, "--output", "run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in said
    line = next(line for line in said.splitlines() if "interrupted and saved at step" in line)
    again = shlex.split(line.partition("resume with: ")[2])
    assert again[0] == "ssl"
    done = ssl(*again[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run").step == 240


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol"])
def test_devices_trains_on_two_processes(config, tmp_path, method):
    words = ("train", str(config), f"method={method}", "training.epochs=1", "--output", "run", "--devices", "2")
    done = ssl(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ssl export backbone") == 1
    assert newest(tmp_path / "run").document["world_size"] == 2


def test_torchrun_and_devices_train_the_same_run(config, tmp_path):
    words = ["train", str(config), "training.epochs=1", "--output", "torchrun"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sslcli"]
    done = subprocess.run(
        [*torchrun, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    done = ssl(*words[:-1], "devices", "--devices", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "torchrun", tmp_path / "devices")


def test_an_interrupted_group_saves_once_and_resumes(config, tmp_path):
    words = ("train", str(config), *LONG, "--output", "run", "--devices", "2")
    process = start(*words, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.count("interrupted and saved") == 1
    done = ssl(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run").step == 240


def test_a_mistake_on_several_processes_is_reported_once(config, tmp_path):
    done = ssl("train", str(config), "training.batch_size=9", "--output", "run", "--devices", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


GREEDY = """
import torch
from sslcli import distributed
from sslcli.contracts.callback import Callback

class Greedy(Callback):
    def on_step(self, context):
        if distributed.rank() == 1 and context.progress.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
"""


def test_too_little_memory_for_one_of_two_processes_ends_both_with_a_line_each(config, tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    words = ["callbacks.greedy={}", "--plugin", "greedy.py", "--devices", "2", "--output", "run", "--quiet"]
    done = ssl("train", str(config), *words, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("ssl: ")]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert any(line.startswith("ssl: out of memory after step 2 on process 1: try a smaller") for line in said)


def test_a_callback_on_one_process_ends_all_after_the_same_step(config, tmp_path):
    """There the views change, and the resumed run ends bitwise identical to one that was not stopped."""
    phases = "views={phases: [{until: 25%}, {views: [{count: 2, size: 24}, {size: 16}]}]}"
    plugin = Path(__file__).parents[1] / "odd_plugins.py"
    words = ("train", str(config), phases, "training.accumulate=2", "--devices", "2", "--plugin", str(plugin))
    stopped = ssl(*words, "callbacks.stopper={step: 3, rank: 1}", "--output", "parts", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "ended at step 3 of 12: process 1 has seen enough" in stopped.stderr
    assert (newest(tmp_path / "parts").step, newest(tmp_path / "parts").document["world_size"]) == (3, 2)
    assert (tmp_path / "parts" / "backbone.safetensors").exists()
    resumed = ssl(*words, "--output", "parts", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 4: phase 2 of 2 begins, views: 2 of 24 px, 1 of 16 px" in resumed.stderr
    whole = ssl(*words, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
