"""The README and the pages on training, evaluation and export: every command works, and the README's lines of Python.

`.ci/full` runs this file in an environment that has the wheel, where nothing is imported from the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


#: In the order in which a reader would follow them; a command that two of them show runs once.
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("training", "evaluation", "export"))]


def commands() -> list[str]:
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    lines = [" ".join(line.partition(" # ")[0].split()) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [line for line in dict.fromkeys(lines) if line and not line.startswith("#") and "pip install" not in line]


def test_every_command_works(tmp_path):
    """In order, in one folder, each shortened to two steps; installing is what got us here."""
    data = Path(os.environ.get("SSLCLI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "cifar10").is_dir():
        pytest.skip(f"needs CIFAR-10 in {data}/cifar10 (or SSLCLI_TEST_DATA)")
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "home" / "data" / "cifar10").symlink_to(data / "cifar10")
    (tmp_path / "home" / "photographs").symlink_to(data / "imagewoof-mini")
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
    assert len(commands()) >= 20
    for command in commands():
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
    program = block.replace('{"training.epochs": 2}', '{"training.max_steps": 2, "schedule.warmup_epochs": 0}')
    assert program != block
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
