"""`ssl train` in processes of its own: kills, signals, several processes; and every command of the README."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from conftest import TINY
from run_helpers import assert_same_end, newest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
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


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def test_every_command_of_the_readme_works(tmp_path):
    """In order, in one folder, each shortened to two steps; installing is what got us here."""
    data = Path(os.environ.get("SSLCLI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "cifar10").is_dir():
        pytest.skip(f"needs CIFAR-10 in {data}/cifar10 (or SSLCLI_TEST_DATA)")
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "home" / "data" / "cifar10").symlink_to(data / "cifar10")
    (tmp_path / "home" / "photographs").symlink_to(data / "imagewoof-mini")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    (tmp_path / "my_method.py").write_text((ROOT / "tests" / "odd_plugins.py").read_text())
    short = "training.max_steps=2 data.limit=600 training.batch_size=64 backbone.width=8"
    (tmp_path / "my_config.yaml").write_text(
        "method: mean_method\ndata: {name: shapes, count: 600}\noptimizer: {name: sgd, lr: 0.1}\n"
    )
    environment = {
        **ENVIRONMENT, "HOME": str(tmp_path / "home"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    weights = torchvision.models.resnet50().state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    # Where torchvision keeps what it has downloaded: a network of that shape stands for its weights.
    cache = tmp_path / "home" / ".cache" / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(weights, cache / torchvision.models.ResNet50_Weights.DEFAULT.url.rpartition("/")[2])
    commands = [command for command in readme_commands() if "pip install" not in command]
    assert len(commands) >= 20
    for command in commands:
        if "runs/second" in command:
            shutil.copytree(tmp_path / "runs" / "first", tmp_path / "runs" / "second")
        shortened = command
        if command.startswith(("ssl train", "torchrun")):
            words = command.split(" --output ", 1)
            shortened = f"{words[0]} {short}" + (f" --output {words[1]}" if len(words) == 2 else "")
        elif command.startswith("ssl bench"):
            shortened = f"{command} data.limit=600 training.batch_size=64 backbone.width=8 --steps 1 --rounds 1"
        elif command.startswith("ssl eval"):
            shortened = f"{command} data.limit={40 if 'resnet50' in command else 300}"
        done = subprocess.run(
            shortened, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{shortened}\n{done.stderr}"


def test_the_python_of_the_readme_works(tmp_path):
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program = block.replace('{"training.epochs": 2}', '{"training.max_steps": 2, "schedule.warmup_epochs": 0}')
    assert program != block
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
