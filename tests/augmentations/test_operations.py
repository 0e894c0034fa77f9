"""Flip, solarize, normalization, and both ways to change chosen samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sslcli.augmentations import selected
from sslcli.augmentations.blur import Blur
from sslcli.augmentations.flip import Flip
from sslcli.augmentations.grayscale import Grayscale
from sslcli.augmentations.jitter import Jitter
from sslcli.augmentations.selected import on_chosen, select
from sslcli.augmentations.solarize import Solarize
from sslcli.contracts.views import Operation
from sslcli.randomness import uniform
from sslcli.views.normalize import normalize

CHOSEN = torch.tensor([True, False, True])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_flip_flips_the_chosen_samples_horizontally(images: Tensor) -> None:
    flipped = Flip(Flip.Options(), 6).apply(images, {"chosen": CHOSEN})
    assert torch.equal(flipped[0], tv.horizontal_flip(images[0]))
    assert torch.equal(flipped[1], images[1])


@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_solarize_inverts_values_from_the_threshold_up(images: Tensor, threshold: float) -> None:
    images[:, :, 0, 0] = threshold
    solarized = Solarize(Solarize.Options(threshold=threshold), 6).apply(images, {"chosen": CHOSEN})
    assert torch.equal(solarized[0], tv.solarize(images[0], threshold))
    assert not torch.equal(solarized[0], images[0])
    assert torch.equal(solarized[1], images[1])


@pytest.mark.parametrize("cls", [Flip, Jitter, Grayscale, Blur, Solarize])
def test_p_is_the_probability_of_each_sample(cls: type[Operation]) -> None:
    numbers = uniform(4, torch.arange(2000), count=cls.draws)
    for p in (0.0, 0.3, 1.0):
        parameters = cls(cls.Options.parse({"p": p}), 6).parameters(numbers, torch.full((2000, 2), 6))
        assert parameters["chosen"].float().mean() == pytest.approx(p, abs=0.04 if 0 < p < 1 else 0)


def test_normalize_is_torchvisions(images: Tensor) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    expected = tv.normalize(images, list(mean), list(std))
    torch.testing.assert_close(normalize(images, mean, std), expected, atol=1e-5, rtol=0)
    gray_levels = (images * 255).round().to(torch.uint8)
    expected = tv.normalize(gray_levels.float() / 255, list(mean), list(std))
    torch.testing.assert_close(
        normalize(gray_levels, torch.tensor(mean), torch.tensor(std)), expected, atol=1e-5, rtol=0
    )


def test_chosen_samples_change_alike_by_index_and_by_mask(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = torch.tensor([0.5, 0.6, 0.7]).view(-1, 1, 1, 1)
    by_index = on_chosen(torch.mul, images, CHOSEN, factors)
    monkeypatch.setattr(selected, "takes_subsets", lambda images: False)
    by_mask = on_chosen(torch.mul, images, CHOSEN, factors)
    assert torch.equal(by_index, by_mask)
    assert torch.equal(by_index[1], images[1])
    assert torch.equal(by_index[2], images[2] * 0.7)


def test_a_selection_by_arithmetic_is_bitwise_that_of_where(images: Tensor) -> None:
    one, other, condition = images, 3 * images.flip(0) - 1, images > 0.4
    assert torch.equal(select(condition, one, other), torch.where(condition, one, other))
    scalars = torch.arange(3) / 3
    assert torch.equal(select(condition, scalars[1], scalars[2]), torch.where(condition, scalars[1], scalars[2]))
