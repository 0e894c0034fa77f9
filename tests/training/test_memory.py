"""A long run takes no more memory than a short one: none is added between steps 500 and 2,000.

Each run has its own process, since the memory of this one depends on the tests before.
"""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.options import Options
from sslcli.datasets.folder import Folder
from sslcli.plugins import registered
from sslcli.training.train import train

#: Steps after which a run is measured, and one that leaks on purpose, which is noticed much sooner.
STEPS, FEWER = (500, 2000), (100, 300)
#: Allowed growth between the two measurements. Six runs of 2,000 steps, on torch 2.6, 2.11 and 2.15, grew by -4.7 to
#: +0.4 MiB (the allocator returns memory late), and by no tensor, object or open file. 4 MiB are 3 kB per step; one
#: small object per step would be 1,500.
BOUNDS = {"resident MiB": 4.0, "workers MiB": 4.0, "tensors": 20, "objects": 500, "open files": 0}

#: All default callbacks, with log lines, monitors and checkpoints often.
RUN: dict[str, Any] = {
    "method": {"name": "simclr", "projector": {"output_dim": 8}},
    "backbone": {"name": "vit_tiny", "patch_size": 8, "depth": 1},
    "views": [{"count": 2, "size": 16, "operations": ["crop", "flip"]}],
    "optimizer": {"name": "sgd", "lr": 0.01},
    "schedule": {"name": "cosine"},
    "training": {"epochs": 500, "batch_size": 8, "log_every": 10, "workers": 1, "device": "cpu", "precision": "fp32"},
    "checkpoints": {"every_steps": 90},
    "callbacks": {"knn": {"every_epochs": 20}, "online_probe": {"every_epochs": 20}},
}
IMAGES = 32

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]


def resident_mib(process: int | str | None) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measured() -> dict[str, float]:
    gc.collect()
    objects, workers = gc.get_objects(), multiprocessing.active_children()
    return {
        "resident MiB": resident_mib("self"),
        "workers MiB": sum(resident_mib(worker.pid) for worker in workers),
        "tensors": sum(issubclass(type(thing), Tensor) for thing in objects),
        "objects": len(objects),
        "open files": len(os.listdir("/proc/self/fd")),
        "workers": len(workers),
    }


class Watch(Callback):
    """Prints the measurements after some steps."""

    class Options(Options):
        after: tuple[int, int]

    def on_step(self, context: RunContext) -> None:
        if context.progress.step in self.options.after:
            print(json.dumps(measured()), flush=True)


class Leak(Callback):
    """Keeps the features of each step, as a careless monitor would."""

    def on_start(self, context: RunContext) -> None:
        self.kept: list[Tensor | None] = []

    def on_step(self, context: RunContext) -> None:
        self.kept.append(context.step_features)


class LeakingFolder(Folder):
    """Keeps each image that it decodes, enlarged."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.kept: list[Tensor] = []

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        image = super().image_for(index, wanted)
        self.kept.append(image.repeat(1, 3, 3))
        return image


def resident(folder: Path) -> dict[str, Any]:
    return {"name": "shapes", "count": IMAGES, "size": 16}


def decoded(folder: Path) -> dict[str, Any]:
    """Images of different sizes, which a worker process decodes in every epoch."""
    draw = np.random.default_rng(0)
    for number in range(2 * IMAGES):
        file = folder / ("train" if number < IMAGES else "val") / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + number % 5, 24, 3), dtype=np.uint8)).save(file)
    return {"name": "folder", "root": str(folder)}


def run(settings: dict[str, Any], folder: Path) -> None:
    """In the process that is measured."""
    torch.set_num_threads(1)
    given = {("callbacks", "Watch"): Watch, ("callbacks", "Leak"): Leak, ("datasets", "LeakingFolder"): LeakingFolder}
    with registered(given):
        train(resolve(Document(settings, {(): "test"})), folder)


def measurements(
    folder: Path, data: dict[str, Any], steps: tuple[int, int], *callbacks: str
) -> tuple[dict[str, float], dict[str, float]]:
    settings = {**copy.deepcopy(RUN), "data": data}
    settings["training"]["max_steps"] = steps[1]
    settings["callbacks"] |= {"python:Watch": {"after": steps}, **{f"python:{name}": {} for name in callbacks}}
    code = (
        "import json, test_memory; from pathlib import Path; "
        f"test_memory.run(json.loads({json.dumps(settings)!r}), Path({str(folder / 'run')!r}))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return first, second


def grown(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The growth of what has grown by more than its bound."""
    growth = {name: second[name] - first[name] for name in BOUNDS}
    return {name: value for name, value in growth.items() if value > BOUNDS[name]}


@pytest.mark.parametrize(("data", "workers"), [(resident, 0), (decoded, 1)])
def test_memory_after_2000_steps_is_that_after_500(data: Any, workers: int, tmp_path: Path) -> None:
    first, second = measurements(tmp_path, data(tmp_path / "data"), STEPS)
    assert grown(first, second) == {}
    assert first["workers"] == second["workers"] == workers
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_callback_that_keeps_features_is_found(tmp_path: Path) -> None:
    found = grown(*measurements(tmp_path, resident(tmp_path), FEWER, "Leak"))
    assert set(found) == {"resident MiB", "tensors"}
    assert found["tensors"] >= FEWER[1] - FEWER[0]


def test_a_worker_that_keeps_images_is_found(tmp_path: Path) -> None:
    data = {**decoded(tmp_path / "data"), "name": "python:LeakingFolder"}
    assert set(grown(*measurements(tmp_path, data, FEWER))) == {"workers MiB"}
