"""The counts of `floor.py`, compared with sums by hand and torch's own counter; and its tables in the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_helpers import ROOT, Import, benchmark  # noqa: F401  # a fixture
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sslcli.config.resolve import load_config

# ruff: noqa: F811

N, IN, OUT, SIDE = 4, 3, 8, 10
MAP = SIDE * SIDE


@pytest.fixture
def operations(benchmark: Import) -> Any:
    return benchmark("operations")


@pytest.fixture
def floor(benchmark: Import) -> Any:
    return benchmark("floor")


def test_the_count_of_a_convolution_is_that_of_the_formula(operations: Any) -> None:
    layer = nn.Conv2d(IN, OUT, 3, padding=1, bias=False, device="meta")
    images = torch.empty(N, IN, SIDE, SIDE, device="meta", requires_grad=True)
    counter = operations.Counter()
    with counter:
        layer(images)
    (kernel,) = counter.kernels
    assert kernel.operations == 2 * N * MAP * OUT * IN * 3 * 3
    assert kernel.read == 4 * (N * IN * MAP + OUT * IN * 9)
    assert kernel.written == 4 * N * OUT * MAP


def test_the_backward_pass_of_a_convolution_is_two_products_that_read_the_gradient_once_each(operations: Any) -> None:
    layer = nn.Conv2d(IN, OUT, 3, padding=1, bias=False, device="meta")
    images = torch.empty(N, IN, SIDE, SIDE, device="meta", requires_grad=True)
    result, gradient = layer(images), torch.empty(N, OUT, SIDE, SIDE, device="meta")
    counter = operations.Counter()
    with counter:
        result.backward(gradient)
    (kernel,) = [k for k in counter.kernels if k.operations]
    weights, images_size, map_size = OUT * IN * 9, N * IN * MAP, N * OUT * MAP
    assert kernel.operations == 2 * (2 * N * MAP * OUT * IN * 9)
    assert kernel.read == 4 * (2 * map_size + images_size + weights)
    assert kernel.written == 4 * (images_size + weights)


def test_batch_norm_reads_its_input_twice_and_relu_in_place_reads_and_writes_it(operations: Any) -> None:
    x = torch.empty(N, IN, SIDE, SIDE, device="meta")
    norm, size = nn.BatchNorm2d(IN, device="meta"), 4 * N * IN * MAP
    counter = operations.Counter()
    with counter:
        torch.relu_(norm(x))
    by_name = {kernel.name: kernel for kernel in counter.kernels}
    batch_norm, relu = by_name["aten.native_batch_norm.default"], by_name["aten.relu_.default"]
    assert batch_norm.read >= 2 * size
    assert batch_norm.read - 2 * size <= 4 * 4 * IN  # weight, bias and the two running statistics
    assert (relu.read, relu.written) == (size, size)


def test_views_of_a_tensor_and_broadcasting_cost_nothing(operations: Any) -> None:
    row, matrix = torch.empty(1, 7, device="meta"), torch.empty(5, 7, device="meta")
    counter = operations.Counter()
    with counter:
        row.expand(5, 7).t().t().detach()
        row.expand(5, 7) + matrix
    (kernel,) = counter.kernels
    assert (kernel.read, kernel.written) == (4 * (7 + 35), 4 * 35)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_operations_of_a_step_are_those_of_torchs_counter(operations: Any, precision: str) -> None:
    config = load_config(ROOT / "examples/configs/cifar10/simclr.yaml", ["backbone.width=4"])
    with FlopCounterMode(display=False) as counter:
        work = operations.count_step(config, 8, precision, 32)
    counted = {phase: sum(by_dtype.values()) for phase, by_dtype in work.operations().items()}
    assert sum(counted.values()) == counter.get_total_flops()
    # Two products in the backward for each in the forward, but for the images, which need no gradient; one for NT-Xent.
    assert 1.9 < counted["backward"] / counted["forward"] <= 2
    assert counted["views"] == 2 * 2 * 8 * 3 * 2 * 32**3  # two views, rows and columns
    assert counted["optimizer"] == 0


def test_bf16_halves_the_bytes_of_activations_but_not_of_weights_and_state(operations: Any) -> None:
    config = load_config(ROOT / "examples/configs/cifar10/simclr.yaml", ["backbone.width=4"])
    fp32, bf16 = (operations.count_step(config, 8, precision, 32).least_bytes for precision in ("fp32", "bf16"))
    assert fp32["optimizer"] == bf16["optimizer"]
    assert bf16["forward"] / fp32["forward"] == pytest.approx(0.5, abs=0.02)
    images, views = 8 * 3 * 32**2, 2 * 8 * 3 * 32**2
    assert (fp32["views"], bf16["views"]) == (images + 4 * views, images + 2 * views)


def test_an_optimizer_moves_at_least_weights_gradients_and_momentum_once(operations: Any) -> None:
    config = load_config(ROOT / "examples/configs/cifar10/simclr.yaml", ["backbone.width=4"])
    run_size = sum(p.numel() for p in _method(config).parameters())
    work = operations.count_step(config, 8, "fp32", 32)
    assert work.least_bytes["optimizer"] == 5 * 4 * run_size  # read w, g, m; write w, m
    assert work.eager_bytes()["optimizer"] >= work.least_bytes["optimizer"]


def _method(config):  # type: ignore[no-untyped-def]
    backbone = config.backbone.cls.build(config.backbone.options, 3, 32)
    return config.method.cls(backbone, config.method.options, None)


def test_ceilings_are_the_rates_of_the_machine_over_the_work(floor: Any, operations: Any) -> None:
    kernels = (
        operations.Kernel("forward", "mm", torch.bfloat16, 1000, 10, 10),  # computes for 10 s, moves for 2
        operations.Kernel("forward", "mm", torch.float32, 100, 40, 40),  # computes for 4, moves for 8
        operations.Kernel("backward", "add", torch.float32, 0, 40, 40),  # moves for 8
    )
    least = {"views": 10, "forward": 20, "backward": 20, "optimizer": 0}
    work = operations.Work(batch=28, kernels=kernels, least_bytes=least)
    machine = floor.Machine("slow", {"fp32": 25.0, "bf16": 100.0}, 10.0, "")
    found = floor.ceilings(work, machine)
    assert found == {
        "operations": pytest.approx(28 / 14),
        "bytes": pytest.approx(28 / 5),
        "eager": pytest.approx(28 / 26),
    }


def test_the_newest_matching_result_is_shown(floor: Any, tmp_path: Path) -> None:
    def result(name: str, time: str, *overrides: str, threads: int = 2, gpu: str | None = None) -> Path:
        overrides = ("backbone.width=16", "training.precision=bf16", "training.batch_size=64", *overrides)
        written = {
            "config": load_config(ROOT / floor.CIFAR, list(overrides)).plain(), "plan": {}, "time": time,
            "cpu_threads": threads, "gpu": gpu,
            "images_per_second": {"ready": {"median": 100.0, "low": 90.0}, "end_to_end": {"median": 95.0, "low": 80.0}},
        }  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(written))
        return path

    other = tmp_path / "other.json"
    other.write_text(json.dumps({"images_per_second": {"eager": 1}}))
    paths = [
        result("old", "2026-01-01"),
        result("new", "2026-02-01"),
        result("other network", "2026-03-01", "backbone.width=8"),
        result("other arithmetic", "2026-03-01", "training.precision=fp32"),
        result("other views", "2026-03-01", "views.size=64"),
        result("other machine", "2026-03-01", threads=1),
        result("GPU", "2026-03-01", gpu="NVIDIA H100 80GB HBM3"),
        other,
    ]
    results = floor.read_results(paths)
    config = load_config(ROOT / floor.CIFAR, ["backbone.width=16"])
    cpu = floor.Machine(floor.cpu_name(2), {}, 1.0, "")
    found = floor.fitting(config, "bf16", cpu, results)
    assert found == {
        "file": "new.json",
        "time": "2026-02-01",
        "images_per_second": {"ready": 100.0, "end_to_end": 95.0},
    }
    assert floor.fitting(config, "bf16", floor.H100, results)["file"] == "GPU.json"
    assert floor.fitting(config, "fp32", floor.H100, results) == {}


def test_the_page_shows_the_stored_result(floor: Any, benchmark: Import) -> None:
    report = json.loads((ROOT / "benchmarks/results/floor.json").read_text(encoding="utf-8"))
    page = benchmark("page")
    text = page.PAGE.read_text(encoding="utf-8")
    again = "run `python benchmarks/floor.py --reuse --output floor --write-docs`"
    assert page.with_part(text, "floor", floor.tables(report)) == text, again


def test_a_page_without_the_part_is_refused(benchmark: Import) -> None:
    with pytest.raises(ValueError, match="<!-- floor -->"):
        benchmark("page").with_part("# Performance\n", "floor", "")
