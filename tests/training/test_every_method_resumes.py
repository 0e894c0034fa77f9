"""Every method through the real loop: six steps in one go, and three here, three in a process of their own.

All methods share the two processes, since each start costs seconds.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from small_options import method_case, method_cases

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.directory import read_metrics
from sslcli.training.train import train

NAMES = method_cases()
STEPS, HALF = 6, 3


def config(name: str, steps: int) -> RunConfig:
    """A run of 12 steps, 4 an epoch, on 32 labeled images, that ends after `steps`."""
    document = Document(copy.deepcopy(TINY), {(): "test"})
    # Each method with the optimizer of its paper (LARC, AdamW with a schedule of the weight decay …).
    del document.data["optimizer"], document.data["schedule"]
    method, options = method_case(name)
    document.data["method"] = {"name": method, **options}
    apply_overrides(document, [f"training.max_steps={steps}", "training.log_every=1", "schedule.warmup_epochs=1"])
    return resolve(document)


def run_all(folder: Path, steps: int, *, resume: bool) -> None:
    for name in NAMES:
        train(config(name, steps), folder / name, resume=resume)


def in_a_new_process(folder: Path, steps: int) -> None:
    """Goes on with every method's run in a fresh interpreter, with nothing but the files."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    code = (
        "import test_every_method_resumes as runs; from pathlib import Path; "
        f"runs.run_all(Path({str(folder)!r}), {steps}, resume=True)"
    )
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_all(folder / "whole", STEPS, resume=False)
    run_all(folder / "parts", HALF, resume=False)
    in_a_new_process(folder / "parts", STEPS)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_and_three_in_a_new_process_are_six_steps(name: str, runs: Path) -> None:
    whole, parts = (
        read_checkpoint(list_checkpoints(runs / kind / name / "checkpoints")[0]) for kind in ("whole", "parts")
    )
    assert whole.step == parts.step == STEPS
    assert whole.document["numbers"] == parts.document["numbers"]
    assert set(whole.tensors) == set(parts.tensors)
    assert [key for key in whole.tensors if not torch.equal(whole.tensors[key], parts.tensors[key])] == []
    losses = [
        [line["loss"] for line in read_metrics(runs / kind / name / "metrics.jsonl")] for kind in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_moves_and_a_copy_of_it_follows(name: str, runs: Path) -> None:
    """What is exported is not what the run began with, and a momentum encoder is neither the online one nor at rest."""
    steps = [read_checkpoint(path).tensors for path in list_checkpoints(runs / "parts" / name / "checkpoints")]
    newest, older = steps[0], steps[-1]
    kernels = [key for key in newest if key.endswith("conv1.weight") and key.startswith("method.")]
    copies = [key for key in kernels if ".momentum_encoder." in key or ".teacher." in key]
    moved = {key for key in kernels if not torch.equal(newest[key], older[key])}
    assert {key for key in kernels if key not in copies} <= moved
    # So few steps at so small a rate may be lost to rounding in one kernel of the copy, not in all of them.
    assert bool(moved & set(copies)) == bool(copies)
    for key in copies:
        online = key.replace(".momentum_encoder.", ".").replace(".teacher.", ".")
        assert not torch.equal(newest[key], newest[online]), key
