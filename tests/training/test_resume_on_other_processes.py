"""A run of N processes goes on with M: it says what that changes, and ends near the run that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from process_group import in_group
from run_helpers import method_config, newest
from stream_run_helpers import PLUGIN, on_tars
from tiny_data import write_tars

from sslcli.config.schema import TrainingOptions
from sslcli.plugins import register_file
from sslcli.training.regrouped import other_processes
from sslcli.training.setup import build
from sslcli.training.train import train

#: Two runs with what has state beside weights, a queue and an EMA with its center, and one with shuffled batch norm.
RUNS = {
    "moco_v2": [],
    "dino": [],
    "simclr": ["training.accumulate=2", "training.batch_size=16"],
}


def go(world: int, folder: Path, name: str, *more: str, resume: bool = False) -> list[str]:
    """Trains on that many processes; returns what the main one says."""
    case, overrides = name.split()[0], RUNS.get(name, [])

    def member(rank: int) -> list[str]:
        register_file(PLUGIN)
        said: list[str] = []
        train(method_config(case, *overrides, *more), folder / "run", resume=resume, tell=said.append)
        return said

    return in_group(world, member, folder / "group")[0]


def assert_near(first: Path, second: Path) -> None:
    """The weights at the end differ by rounding, and training has moved them much further."""
    a, b = newest(first), newest(second)
    assert a.step == b.step
    assert a.document["cursor"] == b.document["cursor"]
    for name, tensor in a.tensors.items():
        if tensor.is_floating_point() and name.startswith("method."):
            torch.testing.assert_close(b.tensors[name], tensor, rtol=1e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
@pytest.mark.parametrize("name", RUNS)
def test_it_ends_near_the_run_that_was_left_alone(before, after, name, tmp_path):
    go(before, tmp_path / "alone", name)
    go(before, tmp_path / "moved", name, "training.max_steps=5")
    assert newest(tmp_path / "moved" / "run").document["world_size"] == before
    said = "\n".join(go(after, tmp_path / "moved", name, "training.max_steps=null", resume=True))
    assert f"resuming a run of {before} process(es) on {after} process(es): the same images in the same order" in said
    assert newest(tmp_path / "moved" / "run").document["world_size"] == after
    assert_near(tmp_path / "alone" / "run", tmp_path / "moved" / "run")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_a_stream_goes_on_with_the_same_images(before, after, tmp_path):
    write_tars(tmp_path / "tars", (8, 8, 8, 8))
    words = on_tars(tmp_path / "tars")
    go(before, tmp_path / "alone", "simsiam", *words)
    go(before, tmp_path / "moved", "simsiam", *words, "training.max_steps=5")
    go(after, tmp_path / "moved", "simsiam", *words, "training.max_steps=null", resume=True)
    assert_near(tmp_path / "alone" / "run", tmp_path / "moved" / "run")


def test_it_says_what_is_different():
    method = build(method_config("simclr")).method
    start = "resuming a run of 2 process(es) on 4 process(es): the same images in the same order, "
    end = "; results will not be bitwise identical, since sums are rounded differently"
    assert other_processes(2, 4, method, TrainingOptions(batch_size=64)) == (
        f"{start}16 instead of 32 of each batch on a process{end}"
    )
    assert other_processes(2, 4, method, TrainingOptions(batch_size=64, accumulate=2, sync_batch_norm=False)) == (
        f"{start}8 instead of 16 of each micro-batch on a process{end} and batch norm sees a process's 8 images "
        "instead of 16 (training.sync_batch_norm=false)"
    )
    method.add_module("drop", torch.nn.Dropout(0.1))
    assert other_processes(2, 4, method, TrainingOptions(batch_size=64)).endswith(" and dropout draws other numbers")
