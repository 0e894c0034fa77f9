"""Blur against torchvision for the same kernel and sigma."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations.blur import Blur, blur_matrix
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


def test_a_wide_kernel_leaves_out_less_than_a_millionth() -> None:
    radius = Blur(Blur.Options(), 224).radius
    assert math.erfc(radius / 2.0 / math.sqrt(2)) < 1e-6


def test_only_the_chosen_samples_are_blurred() -> None:
    images = torch.rand(5, 1, 16, 16)
    chosen = torch.tensor([True, False, True, False, True])
    blurred = Blur(Blur.Options(), 16).apply(images, {"chosen": chosen, "sigma": torch.ones(5)})
    assert torch.equal(blurred[~chosen], images[~chosen])
    assert (blurred[chosen] != images[chosen]).flatten(1).any(1).all()


def test_sigmas_fill_their_range_sample_by_sample() -> None:
    sigma = Blur(Blur.Options(), 16).parameters(uniform(1, torch.arange(1000), count=2), torch.zeros(1000, 2))["sigma"]
    assert sigma.unique().numel() > 990
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0


def test_every_row_of_the_matrix_sums_to_1() -> None:
    matrix = blur_matrix(torch.tensor([0.1, 2.0]), 9, 8)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("options", [{"sigma": [0, 1]}, {"sigma": [2, 1]}, {"kernel": 3}, {"kernel": "broad"}])
def test_blurs_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Blur.Options.parse(options)
