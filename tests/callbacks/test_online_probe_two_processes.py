"""On two processes the online probe is trained on the joined batch, and is the same on both."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from evaluation_helpers import FakeRun
from safetensors.torch import load_file, save_file

from sslcli.callbacks.online_probe import OnlineProbe, OnlineProbeOptions

COUNT, DIM, CLASSES = 8, 6, 3


def learn(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Three steps on this process's share of each batch; the probe's state."""
    context = FakeRun(None, None)
    context.classes, context.is_main = CLASSES, rank == 0
    probe = OnlineProbe(OnlineProbeOptions(lr=0.5))
    probe.on_start(context)
    for step in range(1, 4):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(COUNT, DIM, generator=g), torch.randint(0, CLASSES, (COUNT,), generator=g)
        context.at(step)
        context.step_features, context.step_labels = x.chunk(world)[rank], y.chunk(world)[rank]
        probe.on_step(context)
    return {name: value.clone() for name, value in probe.state_dict().items() if isinstance(value, torch.Tensor)}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    save_file(learn(rank, 2), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_probe_of_two_processes_is_that_of_the_joined_batch_and_equal_on_both(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert any(bool(value.any()) for name, value in first.items() if name.startswith("probe.linear"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, value in learn(0, 1).items():
        torch.testing.assert_close(first[name], value)
