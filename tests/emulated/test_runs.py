"""Optimizers, precisions, clipping, accumulation, networks, sources and multi-crop on a pretended GPU."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results, waits  # noqa: F401  # a fixture
from matrix import CASES

pytestmark = [pytest.mark.emulated, pytest.mark.slow]
OTHERS = ("method", "evaluator", "exporter", "bench")


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith(OTHERS)])
def test_a_run_never_waits_for_the_device_nor_mixes_devices(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    result = results[case]
    assert waits(result) == []
    assert result["devices"] == ["cuda:0"]
    assert result["races"] == []
    assert result["last_slow"] == []
