"""Jitter and grayscale against torchvision with the same parameters, for both implementations of the jitter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations import jitter as color
from sslcli.augmentations.grayscale import Grayscale
from sslcli.augmentations.jitter import HUE, Jitter, blends, shift_hue
from sslcli.contracts.views import Parameters
from sslcli.randomness import uniform

ORDERS = torch.tensor(list(itertools.permutations(range(4))))
#: In torchvision's order of names as in ours.
ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


@pytest.fixture(params=["subsets", "static"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The jitter by groups of samples with the same order, as on a CPU, and with static shapes, as elsewhere."""
    if request.param == "static":
        monkeypatch.setattr(color, "takes_subsets", lambda images: False)
    return request.param


def jitter(**options: Any) -> Jitter:
    return Jitter(Jitter.Options.parse(options), 8)


def pictures(count: int) -> Tensor:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, :2] = (images[:, :, :2] * 3).round() / 3  # ties between channels, grays, blacks and whites
    return images


def in_every_order(strength: float = 0.8, hue: float = 0.4) -> tuple[Jitter, Parameters]:
    operation = jitter(brightness=strength, contrast=strength, saturation=strength, hue=hue, p=1.0)
    parameters = operation.parameters(uniform(1, torch.arange(24), count=9), torch.full((24, 2), 8))
    return operation, {**parameters, "order": ORDERS, **blends(parameters["factors"], ORDERS)}


def one_by_one(images: Tensor, parameters: Parameters, kinds: set[int]) -> Tensor:
    result = []
    for image, factors, order in zip(images.double(), parameters["factors"], parameters["order"], strict=True):
        for kind in order.tolist():
            image = ADJUST[kind](image, factors[kind].item()) if kind in kinds else image
        result.append(image)
    return torch.stack(result)


@pytest.mark.usefixtures("way")
def test_jitter_is_torchvisions_in_all_24_orders() -> None:
    operation, parameters = in_every_order()
    images = pictures(24)
    ours = operation.apply(images, parameters)
    torch.testing.assert_close(ours.double(), one_by_one(images, parameters, {0, 1, 2, 3}), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("way")
def test_an_adjustment_of_strength_0_is_left_out() -> None:
    operation, parameters = in_every_order(hue=0.0)
    images = pictures(24)
    torch.testing.assert_close(
        operation.apply(images, parameters).double(), one_by_one(images, parameters, {0, 1, 2}), atol=1e-5, rtol=0
    )
    nothing = jitter(brightness=0, contrast=0, saturation=0, hue=0, p=1)
    numbers = uniform(1, torch.arange(24), count=9)
    assert torch.equal(nothing.apply(images, nothing.parameters(numbers, torch.full((24, 2), 8))), images)


@pytest.mark.usefixtures("way")
def test_jitter_leaves_samples_that_are_not_chosen_bitwise_unchanged() -> None:
    operation, parameters = in_every_order()
    chosen = torch.arange(24) % 3 == 0
    images = pictures(24)
    before = images.clone()
    ours = operation.apply(images, {**parameters, "chosen": chosen})
    assert torch.equal(ours[~chosen], images[~chosen])
    assert (ours[chosen] != images[chosen]).flatten(1).any(1).all()
    assert torch.equal(images, before)


def test_factors_cover_torchvisions_ranges_and_differ_between_samples() -> None:
    operation = jitter(brightness=1.2, contrast=0.4, saturation=0.0, hue=0.1, p=0.8)
    parameters = operation.parameters(uniform(2, torch.arange(2000), count=9), torch.full((2000, 2), 8))
    low, high = parameters["factors"].amin(0), parameters["factors"].amax(0)
    torch.testing.assert_close(low, torch.tensor([0.0, 0.6, 1.0, -0.1]), atol=5e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([2.2, 1.4, 1.0, 0.1]), atol=5e-3, rtol=0)
    assert parameters["factors"][:, 0].unique().numel() > 1990
    assert parameters["chosen"].float().mean() == pytest.approx(0.8, abs=0.03)
    counts = (parameters["order"] * 4 ** torch.arange(4)).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > 45  # 83 expected, 9 the standard deviation


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.07, 0.5])
def test_shifted_hues_are_torchvisions(shift: float) -> None:
    images = pictures(4)
    ours = shift_hue(images, torch.tensor(shift).view(1, 1, 1))
    torch.testing.assert_close(ours.double(), ADJUST[HUE](images.double(), shift), atol=1e-5, rtol=0)


def test_grayscale_is_torchvisions_for_the_chosen_samples() -> None:
    images, chosen = pictures(4), torch.tensor([True, False, True, False])
    ours = Grayscale(Grayscale.Options(), 8).apply(images, {"chosen": chosen})
    expected = tv.rgb_to_grayscale(images[chosen].double(), num_output_channels=3)
    torch.testing.assert_close(ours[chosen].double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(ours[~chosen], images[~chosen])
