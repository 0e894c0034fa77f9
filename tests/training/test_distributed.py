"""Two processes compute the same loss and gradients as one with the whole batch, write one run, and resume exactly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from draws_helpers import assert_same_draws
from run_helpers import assert_same_end, newest
from safetensors.torch import load_file
from small_options import needs_vit

from sslcli.plugins import find

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

METHODS = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
#: Of a ResNet, and of a vision transformer.
FIRST = ("conv1.weight", "patch_embed.proj.weight")


def start(output: Path, rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    worker = Path(__file__).parent / "distributed_worker.py"
    environment = {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, str(worker), str(output)], env=environment)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes, and in `alone` those of one."""
    output = tmp_path_factory.mktemp("two")
    (output / "alone").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = start(output / "alone", 0, 1, port)
    assert alone.wait(timeout=300) == 0
    children = [start(output, rank, 2, port) for rank in range(2)]
    try:
        assert [child.wait(timeout=600) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return output


@pytest.mark.parametrize("method", METHODS)
def test_loss_gradients_and_batch_statistics_are_those_of_one_process(two, method):
    joined = load_file(two / "alone" / "gradients.safetensors")
    shared = load_file(two / "gradients.safetensors")
    names = [name for name in joined if name.startswith(f"{method}.")]
    assert set(joined) == set(shared)
    assert sum("running" in name for name in names) > 20 or needs_vit(method)  # which has no batch norm
    for name in names:
        torch.testing.assert_close(shared[name], joined[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert any(joined[name].abs().max() > 1e-4 for name in names if name.endswith(FIRST))


def test_accumulated_gradients_are_those_of_one_process(two):
    joined = load_file(two / "alone" / "gradients.safetensors")
    shared = load_file(two / "gradients.safetensors")
    for name in (name for name in joined if name.startswith("accumulated.")):
        torch.testing.assert_close(shared[name], joined[name], rtol=1e-6, atol=1e-9)


def test_gradients_of_a_smaller_last_step_are_those_of_one_process(two):
    joined = load_file(two / "alone" / "gradients.safetensors")
    shared = load_file(two / "gradients.safetensors")
    names = [name for name in joined if name.startswith("smaller.")]
    assert names
    for name in names:
        torch.testing.assert_close(shared[name], joined[name], rtol=1e-6, atol=1e-9)


def test_methods_draw_the_same_on_two_processes_and_with_two_micro_batches(two):
    places = [place / f"draws-{accumulate}.safetensors" for place in (two, two / "alone") for accumulate in (1, 2)]
    first, *others = map(load_file, places)
    assert len(first["index"]) == 6 * 8
    for other in others:
        assert_same_draws(other, first)


@pytest.mark.parametrize("run", [*METHODS, "local", "smaller"])
def test_a_run_of_two_processes_resumes_bitwise_identical(two, run):
    whole = newest(two / run / "whole")
    assert (whole.step, whole.document["world_size"]) == (12, 2)
    assert_same_end(two / run / "whole", two / run / "parts")


def test_only_the_first_process_writes_and_prints(two):
    assert (two / "messages-1.txt").read_text() == ""
    assert "resuming" in (two / "messages-0.txt").read_text()
    lines = (two / "simclr" / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
