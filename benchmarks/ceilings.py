"""A machine's best rates of computing and of memory traffic: measured for this CPU, from the data sheet for a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """A machine's two ceilings.

    Attributes:
        name: for tables.
        operations: of matrix products per second, by arithmetic (`fp32`, `bf16`), a multiply-add as two.
        bandwidth: bytes per second between the processor and its memory.
        source: where the figures are from.
    """

    name: str
    operations: dict[str, float]
    bandwidth: float
    source: str


#: Dense figures (the sheet's own are with sparsity); fp32 is TF32, which `ssl train` allows on CUDA. Without: 67e12.
H100 = Machine(
    "H100 SXM",
    {"fp32": 494e12, "bf16": 989e12},
    3.35e12,
    "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM, half of the figures with sparsity",
)


def cpu_name(threads: int) -> str:
    """The name of this CPU in tables."""
    return f"this CPU, {threads} thread{'s' if threads > 1 else ''}"


def measure_cpu(threads: int, side: int, mebibytes: int, repeats: int) -> tuple[Machine, dict[str, list[float]]]:
    """Measures this CPU: square matrix products, and the triad a ← b + 3c (McCalpin's STREAM).

    Args:
        threads: of torch.
        side: of the matrices.
        mebibytes: size of each of the triad's three arrays; more than the caches hold.
        repeats: how often; the first run of each does not count.

    Returns:
        the medians, and smallest and largest figure of each measurement.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = {name: _rates(2 * side**3, _product(side, dtype), repeats) for name, dtype in DTYPES.items()}
        rates["triad"] = _rates(3 * mebibytes * 2**20, _triad(mebibytes * 2**18), repeats)
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    bandwidth = medians.pop("triad")
    source = f"medians of {repeats}: products of {side}×{side} matrices, triad over {3 * mebibytes} MiB"
    machine = Machine(cpu_name(threads), medians, bandwidth, source)
    return machine, {name: [min(values), max(values)] for name, values in rates.items()}


def _rates(amount: float, work: Callable[[], object], repeats: int) -> list[float]:
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - began))
    return rates[1:]


def _product(side: int, dtype: torch.dtype) -> Callable[[], object]:
    first, second, out = (torch.randn(side, side).to(dtype) for _ in range(3))
    return lambda: torch.mm(first, second, out=out)


def _triad(count: int) -> Callable[[], object]:
    first, second, out = (torch.ones(count) for _ in range(3))
    return lambda: torch.add(first, second, alpha=3, out=out)
