"""The presets of SimSiam and BYOL, number by number, as a config resolves them."""

from __future__ import annotations

from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.views import ViewSpec


def views(name: str, size: int = 224, **changes: Any) -> tuple[ViewSpec, ...]:
    problems = Problems(Document({}))
    specs = resolve_views({"preset": name, **changes}, {}, size, problems)
    assert not problems.lines
    return specs


def operations(view: ViewSpec) -> dict[str, dict[str, Any]]:
    return {operation.name: operation.options for operation in view.operations}


def strengths(view: ViewSpec) -> tuple[float, ...]:
    jitter = operations(view)["jitter"]
    return tuple(jitter[key] for key in ("brightness", "contrast", "saturation", "hue", "p"))


@pytest.mark.parametrize(
    ("name", "scale", "interpolation"),
    [("moco_v2", [0.2, 1.0], "bilinear"), ("cifar_weak", [0.08, 1.0], "bicubic")],
)
def test_like_views_are_as_published(name: str, scale: list[float], interpolation: str) -> None:
    (view,) = views(name)
    found = operations(view)
    assert view.count == 2
    assert list(found) == ["crop", "flip", "jitter", "grayscale", "blur"]
    assert (found["crop"]["scale"], found["crop"]["interpolation"]) == (scale, interpolation)
    assert strengths(view) == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert [found[key]["p"] for key in ("flip", "grayscale", "blur")] == [0.5, 0.2, 0.5]
    assert found["blur"]["sigma"] == [0.1, 2.0]
    assert found["blur"]["kernel"] == "wide"


@pytest.mark.parametrize(("name", "blur"), [("byol", [1.0, 0.1]), ("cifar_asym", [None, None])])
def test_unlike_views_are_as_published(name: str, blur: list[float | None]) -> None:
    pair = views(name)
    assert [view.count for view in pair] == [1, 1]
    for view in pair:
        found = operations(view)
        assert (found["crop"]["scale"], found["crop"]["interpolation"]) == ([0.08, 1.0], "bicubic")
        assert strengths(view) == (0.4, 0.4, 0.2, 0.1, 0.8)
        assert [found[key]["p"] for key in ("flip", "grayscale")] == [0.5, 0.2]
    assert [operations(view).get("blur", {}).get("p") for view in pair] == blur
    assert [operations(view).get("solarize", {}).get("p") for view in pair] == [None, 0.2]
    assert operations(pair[1])["solarize"]["threshold"] == 0.5


def test_blur_zero_takes_the_blur_out_of_both_views() -> None:
    assert all("blur" not in operations(view) for name in ("moco_v2", "byol") for view in views(name, blur=0.0))


def test_single_view_of_an_unlike_pair_can_be_set() -> None:
    first, second = views("byol", **{"0": {"blur": 0.5}})
    assert operations(first)["blur"]["p"] == 0.5
    assert operations(second)["blur"]["p"] == 0.1
