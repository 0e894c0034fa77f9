"""Blur against torchvision with the same kernel and sigma."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations.blur import Blur
from sslcli.randomness import uniform

ALL = torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("size", "kernel", "pixels"),
    [(40, "wide", 21), (8, "wide", 15), (40, 0.1, 5), (70, 0.1, 7), (100, 0.29, 29), (6, 0.1, 1)],
)
def test_blur_is_torchvisions(size: int, kernel: Any, pixels: int) -> None:
    operation = Blur(Blur.Options.parse({"kernel": kernel}), size)
    assert 2 * operation.radius + 1 == pixels
    images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.4, 0.9, 1.5, 2.0])
    ours = operation.apply(images, {"chosen": ALL, "sigma": sigma})
    for image, view, width in zip(images, ours, sigma.tolist(), strict=True):
        expected = tv.gaussian_blur(image.double(), [pixels, pixels], [width, width])
        torch.testing.assert_close(view.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(30, "wide"), (30, 0.1), (1, "wide")])
@pytest.mark.parametrize(("padding", "numpys"), [("zeros", "constant"), ("edge", "edge"), ("reflect", "reflect")])
def test_beyond_the_edges_is_what_the_option_says(size: int, kernel: Any, padding: str, numpys: str) -> None:
    operation = Blur(Blur.Options.parse({"kernel": kernel, "padding": padding}), size)
    images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    sigma = [0.1, 0.4, 0.9, 1.5, 2.0]
    ours = operation.apply(images, {"chosen": ALL, "sigma": torch.tensor(sigma)})
    reach = operation.radius
    for image, view, width in zip(images.double().numpy(), ours.double().numpy(), sigma, strict=True):
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        padded = np.pad(image, [(0, 0), (reach, reach), (reach, reach)], mode=numpys)
        for axis in (1, 2):
            padded = np.apply_along_axis(np.convolve, axis, padded, weights / weights.sum(), mode="valid")
        np.testing.assert_allclose(view, padded, atol=1e-5)


@pytest.mark.parametrize(("size", "pixels"), [(224, 23), (96, 9), (110, 11)])
def test_a_tenth_of_the_side_is_the_kernel_of_simclr_and_byol(size: int, pixels: int) -> None:
    """2·int(side / 10 / 2) + 1 pixels: google-research/simclr data_util.py, deepmind byol augmentations.py."""
    assert 2 * Blur(Blur.Options.parse({"kernel": 0.1}), size).radius + 1 == pixels


def test_less_than_a_millionth_of_a_gaussian_is_outside_a_wide_kernel() -> None:
    radius = Blur(Blur.Options(), 224).radius
    assert math.erfc(radius / 2.0 / math.sqrt(2)) < 1e-6


def test_each_sample_has_its_own_sigma_within_the_range() -> None:
    sigma = Blur(Blur.Options(), 16).parameters(uniform(1, torch.arange(1000), count=2), torch.zeros(1000, 2))["sigma"]
    assert sigma.unique().numel() > 990
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0


@pytest.mark.parametrize(
    "options", [{"sigma": [0, 1]}, {"sigma": [2, 1]}, {"kernel": 3}, {"kernel": "broad"}, {"padding": "mirror"}]
)
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Blur.Options.parse(options)
