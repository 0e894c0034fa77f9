"""Optimizers, precisions, clipping, accumulation, networks, sources and multi-crop on a pretended GPU."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results, waits  # noqa: F401  # a fixture
from matrix import CASES

pytestmark = pytest.mark.emulated
QUICK = ("optimizer lars fp16", "second device")
OTHERS = ("method", "evaluator", "exporter", "bench")


def cases() -> list[Any]:
    names = [name for name in CASES if not name.startswith(OTHERS)]
    return [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in names]


@pytest.mark.parametrize("case", cases())
def test_a_run_never_waits_for_the_device_nor_mixes_devices(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    result = results[case]
    assert waits(result) == []
    assert result["devices"] == ["cuda:1" if case == "second device" else "cuda:0"]
    assert result["races"] == []
    assert result["last_slow"] == []
