"""The presets of MoCo v1, SupCon and the probes, number by number and against torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.views import ViewSpec
from sslcli.views.pipeline import ViewMaker


def views(name: str, size: int = 224, **changes: Any) -> tuple[ViewSpec, ...]:
    problems = Problems(Document({}))
    specs = resolve_views({"preset": name, **changes}, {}, size, problems)
    assert not problems.lines
    return specs


def operations(view: ViewSpec) -> dict[str, dict[str, Any]]:
    return {operation.name: operation.options for operation in view.operations}


def maker(name: str, size: int, **changes: Any) -> ViewMaker:
    return ViewMaker(views(name, size, **changes), 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed=1)


def sources(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def sides(count: int, height: int, width: int) -> Tensor:
    return torch.tensor([[height, width]]).repeat(count, 1)


def test_moco_v1s_views_are_as_published_with_gray_before_the_jitter() -> None:
    (view,) = views("moco_v1")
    found = operations(view)
    assert view.count == 2
    assert list(found) == ["crop", "flip", "grayscale", "jitter"]
    assert (found["crop"]["scale"], found["crop"]["interpolation"]) == ([0.2, 1.0], "bilinear")
    assert found["jitter"] == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0}
    assert (found["flip"]["p"], found["grayscale"]["p"]) == (0.5, 0.2)


def test_moco_v1s_views_are_those_of_torchvisions_operations_in_the_papers_order() -> None:
    made, images = maker("moco_v1", 24), sources(16, 40, 56)
    draws = made.draw(0, torch.arange(16), sides(16, 40, 56))
    adjustments = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    grays, flips = 0, 0
    for view, (crop, flip, gray, jitter) in zip(made.apply([images], draws), draws.values, strict=True):
        for n, image in enumerate(images):
            (top, height), (left, width) = (crop[key][n][:2].int().tolist() for key in ("rows", "columns"))
            expected = tv.resize(image[:, top : top + height, left : left + width] / 255, [24, 24], antialias=True)
            if gray["chosen"][n]:
                expected = tv.rgb_to_grayscale(expected, 3)
            for kind in jitter["order"][n].tolist():
                expected = adjustments[kind](expected, float(jitter["factors"][n, kind]))
            if flip["chosen"][n]:  # last, as in the paper's code
                expected = tv.horizontal_flip(expected)
            torch.testing.assert_close(view[n], expected, atol=2e-4, rtol=0)
            grays, flips = grays + int(gray["chosen"][n]), flips + int(flip["chosen"][n])
        assert jitter["chosen"].all()
    assert 0 < grays < 32
    assert 0 < flips < 32


def test_short_keys_change_moco_v1s_views_and_keep_their_order() -> None:
    (view,) = views("moco_v1", crop_scale=[0.3, 1.0], jitter={"hue": 0.1}, blur=0.5)
    found = operations(view)
    assert list(found) == ["crop", "flip", "grayscale", "jitter", "blur"]
    assert found["crop"]["scale"] == [0.3, 1.0]
    assert (found["jitter"]["hue"], found["jitter"]["p"]) == (0.1, 1.0)
    assert "grayscale" not in operations(views("moco_v1", grayscale=0)[0])


def test_a_view_can_name_the_order_of_its_short_keys() -> None:
    problems = Problems(Document({}))
    (view,) = resolve_views([{"order": ["blur", "jitter"], "flip": 0.5, "jitter": 0.8, "blur": 0.5}], {}, 32, problems)
    assert not problems.lines
    assert list(operations(view)) == ["crop", "blur", "jitter", "flip"]


@pytest.mark.parametrize("order", ["jitter", ["crop"], [3], [["flip"]]])
def test_an_order_of_something_else_is_refused(order: Any) -> None:
    problems = Problems(Document({}))
    resolve_views([{"order": order}], {}, 32, problems)
    assert len(problems.lines) == 1
    assert "views.0.order: should be a list of some of flip, jitter" in str(problems.lines[0])


def test_supcons_views_are_moco_v2s_without_blur() -> None:
    (view,), (like,) = views("supcon"), views("moco_v2", blur=0)
    assert view == like
    found = operations(view)
    assert view.count == 2
    assert list(found) == ["crop", "flip", "jitter", "grayscale"]
    assert found["crop"]["scale"] == [0.2, 1.0]
    assert found["jitter"] == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}


@pytest.mark.parametrize("size", [32, 224])
def test_a_probe_learns_from_one_crop_and_flip(size: int) -> None:
    (view,) = views("probe_train", size)
    found = operations(view)
    assert (view.count, view.size, list(found)) == (1, size, ["crop", "flip"])
    assert (found["crop"]["scale"], found["crop"]["interpolation"]) == ([0.08, 1.0], "bilinear")
    assert found["flip"]["p"] == 0.5


@pytest.mark.parametrize(("height", "width"), [(130, 170), (300, 200), (96, 128)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_probe_is_judged_on_torchvisions_resize_and_center_crop(height: int, width: int, interpolation: str) -> None:
    made, images = maker("probe_eval", 112, interpolation=interpolation), sources(2, height, width)
    (ours,) = made.apply([images], made.draw(0, torch.arange(2), sides(2, height, width)))
    expected = images.double() / 255
    mode = v2.InterpolationMode(interpolation)
    resized = (height * 128 // min(height, width), width * 128 // min(height, width))
    # One side at a time, clipped to what a pixel can be, as PIL resizes.
    expected = tv.resize(expected, [height, resized[1]], interpolation=mode, antialias=True).clamp(0, 1)
    expected = tv.resize(expected, list(resized), interpolation=mode, antialias=True).clamp(0, 1)
    torch.testing.assert_close(ours.double(), tv.center_crop(expected, [112, 112]), atol=2e-5, rtol=0)


def test_small_images_are_judged_as_they_are() -> None:
    made, images = maker("probe_eval", 32), sources(3, 32, 32)
    (ours,) = made.apply([images], made.draw(0, torch.arange(3), sides(3, 32, 32)))
    assert torch.equal((ours * 255).round().to(torch.uint8), images)
    (wide,) = made.apply([sources(3, 32, 40)], made.draw(0, torch.arange(3), sides(3, 32, 40)))
    assert torch.equal((wide * 255).round().to(torch.uint8), sources(3, 32, 40)[..., 4:36])


def test_the_share_that_a_probe_sees_can_be_set() -> None:
    assert operations(views("probe_eval")[0])["resize"]["ratio"] == 256 / 224
    assert operations(views("probe_eval", 64)[0])["resize"]["ratio"] == 1
    assert operations(views("probe_eval", ratio=1.0)[0])["resize"]["ratio"] == 1
    assert len(views("probe_eval")) == views("probe_eval")[0].count == 1
