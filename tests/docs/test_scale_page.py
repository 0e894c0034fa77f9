"""The Slurm script of docs/scale.md, with stand-ins for Slurm: a signal saves, and the requeued job goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from run_helpers import assert_same_end, newest

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
COMMAND = "ssl train imagenet/simclr data.root=/data/imagenet --output runs/simclr --resume"

#: Starts the tasks of both nodes here; passes SIGTERM on to each task's process once, as Slurm sends it.
SRUN = """#!{python}
import os, signal, subprocess, sys
command = sys.argv[2:]
assert sys.argv[1] == "--kill-on-bad-exit=0" and command[:2] == ["bash", "-c"]
tasks = []
for task in range(2):
    environment = {{**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}}
    tasks.append(subprocess.Popen(command, env=environment))
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
with open("srun.pid", "w") as file:
    file.write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then printf 'localhost\\nother\\n'; else echo "$@" >> scontrol.log; fi
"""


def script() -> str:
    (found,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert COMMAND in found
    return found


def started(folder: Path, words: str) -> subprocess.Popen[str]:
    """The job, on the tiny run; two tasks on two nodes."""
    (folder / "job.sh").write_text(script().replace(COMMAND, f"{sys.executable} -m sslcli train {words}"))
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": str(4200 + os.getpid() % 10_000), "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    return subprocess.Popen(
        ["bash", "job.sh"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def test_the_script_is_one_for_bash() -> None:
    subprocess.run(["bash", "-n"], input=script(), text=True, check=True)
    assert "#SBATCH --requeue" in script()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_gets_the_signal_saves_and_the_requeued_one_goes_on(slurm):
    words = "tiny.yaml training.epochs=30 checkpoints.every_epochs=null --resume --output"
    job, metrics = started(slurm, f"{words} run"), slurm / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and '"step": 10,' in metrics.read_text()):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int((slurm / "srun.pid").read_text()), signal.SIGTERM)
    said, _ = job.communicate(timeout=600)
    assert job.returncode == 143, said
    assert said.count("interrupted and saved at step") == 1
    assert "Traceback" not in said
    assert (slurm / "scontrol.log").read_text().startswith("requeue ")
    assert 10 <= newest(slurm / "run").step < 120
    again = started(slurm, f"{words} run")
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "resuming run from step" in said
    whole = started(slurm, f"{words} whole")
    said, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    assert len((slurm / "scontrol.log").read_text().splitlines()) == 1
    assert newest(slurm / "run").step == 120
    assert_same_end(slurm / "run", slurm / "whole")
