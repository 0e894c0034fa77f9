"""What only a GPU can show of a run; with the same on the CPU where that has a path of its own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import ConfigMaker
from run_helpers import assert_same_end, method_config, newest

from sslcli import distributed
from sslcli.training import group
from sslcli.training.train import train

on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
MONITORS = ["callbacks.knn={every_epochs: 1}", "callbacks.online_probe={every_epochs: 1}",
            "callbacks.logistic={every_epochs: 1}"]  # fmt: skip


@pytest.fixture
def one_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs join a group of one process, and go the way of several: NCCL or gloo, DDP, synchronized batch norm."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(group, "described", lambda: True)
    monkeypatch.setattr(distributed, "is_distributed", dist.is_initialized)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["simclr", "moco_v2"])
def test_one_process_through_ddp_trains_as_without_it(
    tmp_path: Path, request: pytest.FixtureRequest, method: str, device: str
) -> None:
    config = method_config(method, f"training.device={device}", "training.epochs=1", "training.deterministic=true")
    train(config, tmp_path / "alone")
    request.getfixturevalue("one_process_group")
    train(config, tmp_path / "group")
    assert not dist.is_initialized()
    alone, grouped = newest(tmp_path / "alone"), newest(tmp_path / "group")
    assert alone.step == grouped.step == 4
    torch.testing.assert_close(grouped.tensors, alone.tensors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_deterministic_run_resumes_bitwise_with_every_monitor_on(
    tiny: ConfigMaker, tmp_path: Path, device: str
) -> None:
    overrides = [f"training.device={device}", "training.deterministic=true", "training.epochs=2", *MONITORS]
    train(tiny(*overrides), tmp_path / "whole")
    train(tiny(*overrides, "training.max_steps=6"), tmp_path / "parts")
    train(tiny(*overrides), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["simclr", "moco_v2", "byol"])
def test_cuda_graphs_replay_the_same_steps_with_a_momentum_encoder_and_a_queue(tmp_path: Path, method: str) -> None:
    ends = {}
    for graphs in ("true", "false"):
        config = method_config(method, "training.device=cuda", "training.compile=all", f"training.cuda_graphs={graphs}")
        train(config, tmp_path / graphs)
        ends[graphs] = {k: v for k, v in newest(tmp_path / graphs).tensors.items() if v.is_floating_point()}
    torch.testing.assert_close(ends["true"], ends["false"], rtol=0.02, atol=5e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pooling_in_channels_last_repeats_its_gradient_bitwise(device: str, dtype: torch.dtype) -> None:
    """A ResNet's pool, whose windows overlap: many gradients are added to one pixel."""
    torch.use_deterministic_algorithms(True)
    g = torch.Generator().manual_seed(0)
    # Few different values, so that the maximum of neighboring windows is often the same pixel.
    images = torch.randint(0, 4, (16, 64, 56, 56), generator=g).to(device, dtype)
    weights = torch.randn(16, 64, 28, 28, generator=g).to(device, dtype)
    found = []
    for _ in range(5):
        x = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.autograd.backward((F.max_pool2d(x, 3, stride=2, padding=1) * weights).sum())
        assert x.grad is not None
        found.append(x.grad)
    assert all(torch.equal(each, found[0]) for each in found)
