"""The presets, number by number as a config resolves them, by view size and option, and against torchvision."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.errors import UserError
from sslcli.contracts.views import ViewSpec
from sslcli.plugins import load
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


def numbers(view: ViewSpec) -> dict[str, Any]:
    """A view's operations in order; flip, grayscale, blur and solarize with default options as their probability."""
    short = {}
    for name, options in operations(view).items():
        default = load("augmentations", name).Options().plain()
        only_p = name not in ("crop", "resize", "jitter") and options == {**default, "p": options["p"]}
        short[name] = options["p"] if only_p else options
    return short


def maker(name: str, size: int, **changes: Any) -> ViewMaker:
    return ViewMaker(views(name, size, **changes), 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed=1)


def sources(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def sides(count: int, height: int, width: int) -> Tensor:
    return torch.tensor([[height, width]]).repeat(count, 1)


def crop(low: float, high: float, interpolation: str) -> dict[str, Any]:
    return {"interpolation": interpolation, "scale": [low, high], "ratio": [3 / 4, 4 / 3]}


def jitter(brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8) -> dict[str, float]:
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "p": p}


SIMCLR = {"flip": 0.5, "jitter": jitter(0.8, 0.8, 0.8, 0.2), "grayscale": 0.2}
MOCO = {"flip": 0.5, "jitter": jitter(0.4, 0.4, 0.4, 0.1), "grayscale": 0.2}
BYOL = {"flip": 0.5, "jitter": jitter(0.4, 0.4, 0.2, 0.1), "grayscale": 0.2}
#: The kernel of SimCLR's and BYOL's own code.
TENTH = {"sigma": [0.1, 2.0], "kernel": 0.1, "padding": "reflect"}
#: At 224 pixels: count, size and operations of each view.
PUBLISHED: dict[str, list[tuple[int, int, dict[str, Any]]]] = {
    "simclr": [(2, 224, {"crop": crop(0.08, 1, "bicubic"), **SIMCLR, "blur": {**TENTH, "p": 0.5}})],
    "moco_v1": [
        (2, 224, {"crop": crop(0.2, 1, "bilinear"), "flip": 0.5, "grayscale": 0.2, "jitter": jitter(*[0.4] * 4, p=1.0)})
    ],
    "moco_v2": [(2, 224, {"crop": crop(0.2, 1, "bilinear"), **MOCO, "blur": 0.5})],
    "cifar_weak": [(2, 224, {"crop": crop(0.08, 1, "bicubic"), **MOCO, "blur": 0.5})],
    "supcon": [(2, 224, {"crop": crop(0.2, 1, "bilinear"), **MOCO})],
    "byol": [
        (1, 224, {"crop": crop(0.08, 1, "bicubic"), **BYOL, "blur": 1.0}),
        (1, 224, {"crop": crop(0.08, 1, "bicubic"), **BYOL, "blur": 0.1, "solarize": 0.2}),
    ],
    "cifar_asym": [
        (1, 224, {"crop": crop(0.08, 1, "bicubic"), **BYOL}),
        (1, 224, {"crop": crop(0.08, 1, "bicubic"), **BYOL, "solarize": 0.2}),
    ],
    "swav": [
        (2, 224, {"crop": crop(0.14, 1, "bilinear"), **SIMCLR, "blur": 0.5}),
        (6, 96, {"crop": crop(0.05, 0.14, "bilinear"), **SIMCLR, "blur": 0.5}),
    ],
    "dino": [
        (1, 224, {"crop": crop(0.4, 1, "bicubic"), **BYOL, "blur": 1.0}),
        (1, 224, {"crop": crop(0.4, 1, "bicubic"), **BYOL, "blur": 0.1, "solarize": 0.2}),
        (8, 96, {"crop": crop(0.05, 0.4, "bicubic"), **BYOL, "blur": 0.5}),
    ],
    "lejepa": [
        (2, 224, {"crop": crop(0.3, 1, "bilinear"), **BYOL, "blur": 0.5, "solarize": 0.2}),
        (6, 96, {"crop": crop(0.05, 0.3, "bilinear"), **BYOL, "blur": 0.5, "solarize": 0.2}),
    ],
    "probe_train": [(1, 224, {"crop": crop(0.08, 1, "bilinear"), "flip": 0.5})],
    "probe_eval": [(1, 224, {"resize": {"interpolation": "bilinear", "ratio": 256 / 224}})],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_views_are_as_published(name: str) -> None:
    specs = views(name)
    for view, (count, size, expected) in zip(specs, PUBLISHED[name], strict=True):
        found = numbers(view)
        assert (view.count, view.size, found) == (count, size, expected)
        assert list(found) == list(expected)


@pytest.mark.parametrize("size", [32, 64])
def test_simclrs_small_views_are_the_papers_on_cifar(size: int) -> None:
    found = numbers(views("simclr", size)[0])
    assert list(found) == ["crop", "flip", "jitter", "grayscale"]
    assert found["jitter"] == jitter(0.4, 0.4, 0.4, 0.1)


def test_strength_and_blur_of_simclr_can_be_set() -> None:
    assert numbers(views("simclr", 32, strength=1.0)[0])["jitter"] == jitter(0.8, 0.8, 0.8, 0.2)
    assert numbers(views("simclr", 32, blur=0.3)[0])["blur"] == 0.3
    assert numbers(views("simclr", 224, blur=0.3)[0])["blur"] == {**TENTH, "p": 0.3}
    assert "blur" not in numbers(views("simclr", 224, blur=0.0)[0])


def test_the_kernel_and_the_padding_of_both_blurs_of_byol_can_be_set_together() -> None:
    found = [operations(view)["blur"] for view in views("byol", blur={"kernel": 0.1, "padding": "zeros"})]
    assert found == [{**TENTH, "p": p, "padding": "zeros"} for p in (1.0, 0.1)]


def test_short_keys_change_all_views_of_a_preset_or_one() -> None:
    assert all("blur" not in operations(view) for name in ("moco_v2", "byol") for view in views(name, blur=0.0))
    first, second = views("byol", **{"0": {"blur": 0.5}})
    assert (operations(first)["blur"]["p"], operations(second)["blur"]["p"]) == (0.5, 0.1)
    specs = views("swav", **{"7": {"blur": 0.0}})
    assert [view.size for view in specs] == [224, 224, *[96] * 6]
    assert ["blur" in operations(view) for view in specs] == [True] * 7 + [False]


# --- the order of operations


def test_moco_v1s_views_are_those_of_torchvisions_operations_in_the_papers_order() -> None:
    made, images = maker("moco_v1", 24), sources(16, 40, 56)
    draws = made.draw(0, torch.arange(16), sides(16, 40, 56))
    adjustments = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    grays, flips = 0, 0
    box, flip, gray, color = draws.values[0]  # rows for the samples of the first view, then of the second
    for number, view in enumerate(made.apply([images], draws)):
        for n, image in enumerate(images, start=16 * number):
            (top, height), (left, width) = (box[key][n][:2].int().tolist() for key in ("rows", "columns"))
            expected = tv.resize(image[:, top : top + height, left : left + width] / 255, [24, 24], antialias=True)
            if gray["chosen"][n]:
                expected = tv.rgb_to_grayscale(expected, 3)
            for kind in color["order"][n].tolist():
                expected = adjustments[kind](expected, float(color["factors"][n, kind]))
            if flip["chosen"][n]:  # last, as in the authors' code
                expected = tv.horizontal_flip(expected)
            torch.testing.assert_close(view[n % 16], expected, atol=2e-4, rtol=0)
            grays, flips = grays + int(gray["chosen"][n]), flips + int(flip["chosen"][n])
    assert color["chosen"].all()
    assert 0 < grays < 32
    assert 0 < flips < 32


def test_short_keys_keep_the_order_of_a_presets_operations() -> None:
    (view,) = views("moco_v1", crop_scale=[0.3, 1.0], jitter={"hue": 0.1}, blur=0.5)
    found = operations(view)
    assert list(found) == ["crop", "flip", "grayscale", "jitter", "blur"]
    assert found["crop"]["scale"] == [0.3, 1.0]
    assert (found["jitter"]["hue"], found["jitter"]["p"]) == (0.1, 1.0)
    assert "grayscale" not in operations(views("moco_v1", grayscale=0)[0])


# --- multi-crop


@pytest.mark.parametrize(("size", "local"), [(224, 96), (160, 69), (96, 41), (32, 14), (3, 1)])
def test_local_views_have_the_same_share_of_any_size(size: int, local: int) -> None:
    assert [views(name, size)[-1].size for name in ("swav", "dino")] == [local, local]


@pytest.mark.parametrize(("size", "multiple", "local"), [(224, 16, 96), (224, 14, 98), (32, 4, 12), (32, 16, 16)])
def test_the_size_of_local_views_can_be_a_multiple_of_a_patch_size(size: int, multiple: int, local: int) -> None:
    assert views("dino", size, local_multiple=multiple)[-1].size == local


def test_count_size_and_scales_of_local_views_can_be_set() -> None:
    specs = views("swav", 32, local_count=3, local_size=16, global_scale=[0.3, 1.0], local_scale=[0.1, 0.3])
    assert [(view.count, view.size) for view in specs] == [(2, 32), (3, 16)]
    assert [operations(view)["crop"]["scale"] for view in specs] == [[0.3, 1.0], [0.1, 0.3]]
    assert [(view.count, view.size) for view in views("swav", local_count=0)] == [(2, 224)]
    assert [(view.count, view.size) for view in views("dino", 4, local_count=0, local_multiple=4)] == [(1, 4), (1, 4)]


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_local_views_as_large_as_global_ones_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"local views of 16 px must be smaller than the global ones of 16 px: set"):
        views(name, 16, local_multiple=16)
    with pytest.raises(UserError, match="local views of 40 px"):
        views(name, 32, local_size=40)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"local_scale": [0.5, 0.1]}, "views.local_scale: .*ascending order"),
        ({"global_scale": [0.5, 1.5]}, "views.global_scale: .*at most 1"),
        ({"local_size": 20, "local_multiple": 16}, "local_size 20 is not a multiple of local_multiple 16"),
        ({"local_cuont": 3}, "unknown option .*local_count"),
    ],
)
def test_invalid_options_are_reported_with_their_key(changes: dict[str, Any], problem: str) -> None:
    (line,) = resolved("swav", **changes)[1]
    assert re.search(problem, line)


def test_local_crops_show_a_small_part_of_the_image() -> None:
    """On a ramp, where values are positions: local views span less of it than global ones ever do."""
    made = maker("swav", 64, jitter=0, grayscale=0, blur=0)
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(32, 3, 64, 64).contiguous()
    found = made.apply([ramp], made.draw(0, torch.arange(32), sides(32, 64, 64)))
    spans = [(view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3))) for view in found]
    assert [view.shape[-1] for view in found] == [64, 64, *[27] * 6]
    assert all(span.max() < (0.14 * 4 / 3) ** 0.5 + 0.05 for span in spans[2:])
    assert min(span.min() for span in spans[:2]) > (0.14 * 3 / 4) ** 0.5 - 0.05


# --- evaluation


@pytest.mark.parametrize(("height", "width"), [(130, 170), (300, 200), (96, 128)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_probe_is_evaluated_on_torchvisions_resize_and_center_crop(
    height: int, width: int, interpolation: str
) -> None:
    made, images = maker("probe_eval", 112, interpolation=interpolation), sources(2, height, width)
    (ours,) = made.apply([images], made.draw(0, torch.arange(2), sides(2, height, width)))
    mode = v2.InterpolationMode(interpolation)
    resized = (height * 128 // min(height, width), width * 128 // min(height, width))
    # One side at a time, clipped to valid pixel values, as PIL resizes.
    expected = tv.resize(images.double() / 255, [height, resized[1]], interpolation=mode, antialias=True).clamp(0, 1)
    expected = tv.resize(expected, list(resized), interpolation=mode, antialias=True).clamp(0, 1)
    torch.testing.assert_close(ours.double(), tv.center_crop(expected, [112, 112]), atol=2e-5, rtol=0)


def test_small_images_are_evaluated_without_resizing() -> None:
    for width in (32, 40):
        made, images = maker("probe_eval", 32), sources(3, 32, width)
        (ours,) = made.apply([images], made.draw(0, torch.arange(3), sides(3, 32, width)))
        first = (width - 32) // 2
        assert torch.equal((ours * 255).round().to(torch.uint8), images[..., first : first + 32])
    assert operations(views("probe_eval", 64)[0])["resize"]["ratio"] == 1
    assert operations(views("probe_eval", ratio=1.0)[0])["resize"]["ratio"] == 1
