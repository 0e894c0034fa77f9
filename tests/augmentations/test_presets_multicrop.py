"""The presets of SwAV and DINO, number by number, as a config resolves them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.errors import UserError
from sslcli.contracts.views import ViewSpec
from sslcli.views.pipeline import ViewMaker


def resolved(name: str, size: int = 224, **changes: Any) -> tuple[tuple[ViewSpec, ...], list[str]]:
    problems = Problems(Document({}))
    return resolve_views({"preset": name, **changes}, {}, size, problems), problems.lines


def views(name: str, size: int = 224, **changes: Any) -> tuple[ViewSpec, ...]:
    specs, lines = resolved(name, size, **changes)
    assert not lines
    return specs


def operations(view: ViewSpec) -> dict[str, dict[str, Any]]:
    return {operation.name: operation.options for operation in view.operations}


def strengths(view: ViewSpec) -> tuple[float, ...]:
    jitter = operations(view)["jitter"]
    return tuple(jitter[key] for key in ("brightness", "contrast", "saturation", "hue", "p"))


def test_swav_views_are_as_published() -> None:
    specs = views("swav")
    assert [(view.count, view.size) for view in specs] == [(2, 224), (6, 96)]
    assert [operations(view)["crop"]["scale"] for view in specs] == [[0.14, 1.0], [0.05, 0.14]]
    for view in specs:
        found = operations(view)
        assert list(found) == ["crop", "flip", "jitter", "grayscale", "blur"]
        assert found["crop"]["interpolation"] == "bilinear"
        assert strengths(view) == (0.8, 0.8, 0.8, 0.2, 0.8)
        assert [found[key]["p"] for key in ("flip", "grayscale", "blur")] == [0.5, 0.2, 0.5]
        assert found["blur"]["sigma"] == [0.1, 2.0]
        assert found["blur"]["kernel"] == "wide"


def test_dino_views_are_as_published() -> None:
    specs = views("dino")
    assert [(view.count, view.size) for view in specs] == [(1, 224), (1, 224), (8, 96)]
    assert [operations(view)["crop"]["scale"] for view in specs] == [[0.4, 1.0], [0.4, 1.0], [0.05, 0.4]]
    for view in specs:
        found = operations(view)
        assert found["crop"]["interpolation"] == "bicubic"
        assert strengths(view) == (0.4, 0.4, 0.2, 0.1, 0.8)
        assert [found[key]["p"] for key in ("flip", "grayscale")] == [0.5, 0.2]
    assert [operations(view)["blur"]["p"] for view in specs] == [1.0, 0.1, 0.5]
    assert [operations(view).get("solarize", {}).get("p") for view in specs] == [None, 0.2, None]
    assert operations(specs[1])["solarize"]["threshold"] == 0.5


@pytest.mark.parametrize(("size", "local"), [(224, 96), (160, 69), (96, 41), (32, 14), (3, 1)])
def test_local_views_keep_their_share_of_any_size(size: int, local: int) -> None:
    assert [views(name, size)[-1].size for name in ("swav", "dino")] == [local, local]


@pytest.mark.parametrize(("size", "multiple", "local"), [(224, 16, 96), (224, 14, 98), (32, 4, 12), (32, 16, 16)])
def test_local_views_can_be_held_to_a_patch_size(size: int, multiple: int, local: int) -> None:
    assert views("dino", size, local_multiple=multiple)[-1].size == local


def test_count_size_and_scales_can_be_set() -> None:
    specs = views("swav", 32, local_count=3, local_size=16, global_scale=[0.3, 1.0], local_scale=[0.1, 0.3])
    assert [(view.count, view.size) for view in specs] == [(2, 32), (3, 16)]
    assert [operations(view)["crop"]["scale"] for view in specs] == [[0.3, 1.0], [0.1, 0.3]]


def test_without_local_views_the_global_ones_remain() -> None:
    assert [(view.count, view.size) for view in views("swav", local_count=0)] == [(2, 224)]
    assert [(view.count, view.size) for view in views("dino", 4, local_count=0, local_multiple=4)] == [(1, 4), (1, 4)]


def test_one_view_of_many_can_be_changed() -> None:
    specs = views("swav", **{"7": {"blur": 0.0}})
    assert [view.size for view in specs] == [224, 224, *[96] * 6]
    assert ["blur" in operations(view) for view in specs] == [True] * 7 + [False]


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_local_views_as_large_as_global_ones_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"local views of 16 px must be smaller than the global ones of 16 px: set"):
        views(name, 16, local_multiple=16)
    with pytest.raises(UserError, match="local views of 40 px"):
        views(name, 32, local_size=40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_scale": [0.5, 0.1]}, "views.local_scale: .*smaller one first"),
        ({"global_scale": [0.5, 1.5]}, "views.global_scale: .*at most 1"),
        ({"local_size": 20, "local_multiple": 16}, "local_size 20 is no multiple of local_multiple 16"),
        ({"local_cuont": 3}, "unknown option .*local_count"),
    ],
)
def test_what_cannot_be_is_told_with_its_key(changes: dict[str, Any], words: str) -> None:
    _, lines = resolved("swav", **changes)
    assert len(lines) == 1
    assert re.search(words, lines[0]), lines


def test_local_crops_show_a_small_part_of_the_image() -> None:
    """From an image whose values tell the place: a local view spans less of it than a global one ever does."""
    maker = ViewMaker(views("swav", 64, jitter=0, grayscale=0, blur=0), 3, (0.0,) * 3, (1.0,) * 3, seed=0)
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(32, 3, 64, 64).contiguous()
    made = maker.apply([ramp], maker.draw(0, torch.arange(32), torch.tensor([[64, 64]]).expand(32, 2)))
    spans = [(view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3))) for view in made]
    assert [view.shape[-1] for view in made] == [64, 64, *[27] * 6]
    assert all(span.max() < (0.14 * 4 / 3) ** 0.5 + 0.05 for span in spans[2:])
    assert min(span.min() for span in spans[:2]) > (0.14 * 3 / 4) ** 0.5 - 0.05
