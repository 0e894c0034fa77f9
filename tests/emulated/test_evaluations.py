"""Evaluators, exporters and the benchmark on a pretended GPU."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results  # noqa: F401  # a fixture
from matrix import CASES

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


def cases(kind: str) -> list[str]:
    return [name for name in CASES if name.startswith(kind)]


@pytest.mark.parametrize("case", cases("evaluator"))
def test_an_evaluator_finds_on_the_device_what_it_finds_on_the_cpu(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    metrics = results[case]["metrics"]
    assert metrics["cuda"]
    # Of a thousand images one or two may change sides after hundreds of steps that round differently.
    apart = {"rel": 1e-3, "abs": 2.5e-3 if "finetune" in case or "linear" in case else 1e-6}
    assert metrics["cuda"] == pytest.approx(metrics["cpu"], **apart)


@pytest.mark.parametrize("case", cases("exporter"))
def test_an_exporter_moves_a_copy_to_the_cpu_and_leaves_the_backbone_there(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    """A tensor of a pretended GPU cannot be traced, and cannot be written."""
    assert "error" not in results[case], results[case]["error"]
    assert results[case]["written"]
    assert results[case]["stayed"]


@pytest.mark.parametrize("case", ["bench"])
def test_the_benchmark_measures_the_memory_of_the_device(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert results[case]["peak"] > 100_000
