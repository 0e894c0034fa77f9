"""Every method in the training loop: six steps in one run, and three here and three in another process.

All methods share the two processes, since each start takes seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_helpers import assert_same_end, method_config, newest
from small_options import method_cases

from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.metrics import read_metrics
from sslcli.training.train import train

pytestmark = pytest.mark.slow  # every method in three processes of its own; `test_resume.py` is the quick part

NAMES = method_cases()
STEPS, HALF = 6, 3


def run_all(folder: Path, steps: int, *, resume: bool) -> None:
    """Runs of 12 steps, 4 per epoch, on 32 labeled images, that end after `steps`; with the methods' own optimizers."""
    overrides = [f"training.max_steps={steps}", "training.log_every=1", "schedule.warmup_epochs=1"]
    for name in NAMES:
        train(method_config(name, *overrides, own_optimizer=True), folder / name, resume=resume)


def in_a_new_process(folder: Path, steps: int) -> None:
    """Resumes every method's run in a new interpreter, which has only the files."""
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
def test_a_run_resumed_in_another_process_is_bitwise_identical(name: str, runs: Path) -> None:
    assert newest(runs / "parts" / name).step == STEPS
    assert_same_end(runs / "whole" / name, runs / "parts" / name)
    whole, parts = (read_metrics(runs / kind / name / "metrics.jsonl") for kind in ("whole", "parts"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in parts]
    assert len(whole) == STEPS


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_is_trained_and_a_momentum_encoder_follows_it(name: str, runs: Path) -> None:
    """What is exported differs from the initial weights, and a momentum encoder from those and the online encoder."""
    steps = [read_checkpoint(path).tensors for path in list_checkpoints(runs / "parts" / name / "checkpoints")]
    after, before = steps[0], steps[-1]
    first = ("conv1.weight", "patch_embed.proj.weight")
    kernels = [key for key in after if key.endswith(first) and key.startswith("method.")]
    copies = [key for key in kernels if ".momentum_encoder." in key or ".teacher." in key]
    moved = {key for key in kernels if not torch.equal(after[key], before[key])}
    assert {key for key in kernels if key not in copies} <= moved
    # So few steps at so small a rate may be lost to rounding in one kernel of the copy, not in all of them.
    assert bool(moved & set(copies)) == bool(copies)
    for key in copies:
        online = key.replace(".momentum_encoder.", ".").replace(".teacher.", ".")
        assert not torch.equal(after[key], after[online]), key
