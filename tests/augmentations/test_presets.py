"""SimCLR's recipe, by size and by option."""

from __future__ import annotations

from typing import Any

import pytest

from sslcli.augmentations.simclr import SimCLRPreset


def view(size: int, **options: Any) -> dict[str, Any]:
    (only,) = SimCLRPreset.views(SimCLRPreset.Options.parse(options), size)
    return only


def test_large_views_are_the_papers_on_imagenet() -> None:
    assert view(224) == {
        "count": 2,
        "crop_scale": [0.08, 1.0],
        "interpolation": "bicubic",
        "flip": 0.5,
        "jitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8},
        "grayscale": 0.2,
        "blur": {"p": 0.5, "kernel": 0.1},
    }


@pytest.mark.parametrize("size", [32, 64])
def test_small_views_are_the_papers_on_cifar(size: int) -> None:
    assert view(size)["jitter"] == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    assert view(size)["blur"] == 0


def test_strength_and_blur_can_be_set() -> None:
    assert view(32, strength=1.0)["jitter"]["hue"] == pytest.approx(0.2)
    assert view(32, blur=0.3)["blur"] == 0.3
    assert view(224, blur=0.3)["blur"] == {"p": 0.3, "kernel": 0.1}
    assert view(224, blur=0.0)["blur"] == 0
