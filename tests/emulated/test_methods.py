"""Every method trains on a pretended GPU, with all monitors, and resumes: nothing waits, no device is mixed, and the
kernels of a step stay below what is stated here."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results, waits  # noqa: F401  # a fixture
from small_options import method_cases

pytestmark = pytest.mark.emulated

#: Most kernels of an eager step of a ResNet-18 with the method's own recipe and optimizer, and of its views: a little
#: above what was counted, so that a change that adds many is seen. `python tests/emulated/count.py` counts anew.
MOST_KERNELS: dict[str, tuple[int, int]] = {
    "barlow_twins": (900, 130),
    "byol": (1180, 130),
    "dino": (740, 130),
    "eqco": (690, 140),
    "ijepa": (490, 50),
    "mae": (370, 50),
    "moco": (690, 140),
    "moco_v1": (650, 120),
    "moco_v2": (690, 140),
    "moco_v3": (1200, 130),
    "lejepa": (540, 130),
    "nnclr": (970, 130),
    "simclr": (520, 130),
    "simclr_v2": (530, 130),
    "simsiam": (890, 120),
    "supcon": (520, 120),
    "swav": (650, 150),
    "vicreg": (950, 130),
    "densecl": (840, 140),
    "distillation": (600, 130),
    "barlow_twins views_together": (590, 130),
    "byol views_together": (730, 130),
    "moco views_together": (700, 140),
    "moco_v3 views_together": (740, 130),
    "nnclr views_together": (640, 130),
    "simsiam views_together": (570, 120),
    "vicreg views_together": (640, 130),
    "distillation tokens": (650, 130),
}
QUICK = ("moco_v2",)  # a momentum encoder and a queue
#: Also quick, since it needs no process of its own here: LARS in fp16, on another device than the first.
SECOND = "method simclr on the second device"


def cases() -> list[Any]:
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in method_cases()}
    return [pytest.param(f"method {name}", marks=marks[name]) for name in method_cases()]


@pytest.mark.parametrize("case", [*cases(), SECOND])
def test_a_method_trains_without_waiting_for_the_device(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    result = results[case]
    assert waits(result) == []
    assert result["devices"] == ["cuda:1" if case == SECOND else "cuda:0"]
    assert result["races"] == []
    assert result["last_slow"] == []


@pytest.mark.parametrize("case", cases())
def test_a_step_launches_no_more_kernels_than_stated(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    kernels = results[case]["last_kernels"]
    most, most_views = MOST_KERNELS[case.removeprefix("method ")]
    assert kernels["views"] <= most_views, kernels
    assert sum(kernels.values()) <= most, kernels


@pytest.mark.parametrize("case", ["method moco_v2"])
def test_each_checkpoint_waits_once_and_the_backbone_file_too(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    copies = [each for each in results[case]["waits"] if "runs/files.py" in each[2]]
    assert sorted((section, count) for section, _, _, count in copies) == [("rest", 2), ("save", 3)]  # twice at an end
    assert {kind for _, kind, _, _ in copies} == {"synchronize of a stream"}
    assert results[case]["races"] == []


def test_every_method_has_a_limit() -> None:
    assert set(MOST_KERNELS) == set(method_cases())
