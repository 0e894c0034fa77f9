"""Barlow Twins' loss against a literal transcription of the paper's equations, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from literal import dot, mean, rows
from torch import Tensor

from sslcli.losses import barlow_twins, barlow_twins_and_metrics
from sslcli.losses.barlow_twins import EPS


def pair(images: int = 6, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    first, second = rows(2, images, dim, seed=seed)
    return first, first + 0.5 * second  # so that the diagonal differs from the rest


def column(z: Tensor, i: int) -> list[float]:
    """Dimension i over the batch, standardized."""
    values = z[:, i].tolist()
    variance = mean([(v - mean(values)) ** 2 for v in values])
    return [(v - mean(values)) / math.sqrt(variance + EPS) for v in values]


def literal_terms(z1: Tensor, z2: Tensor) -> tuple[float, float]:
    """Equations 1 and 2, element by element."""
    images, dims = z1.shape
    on_diagonal = off_diagonal = 0.0
    for i in range(dims):
        for j in range(dims):
            c = dot(column(z1, i), column(z2, j)) / images
            if i == j:
                on_diagonal += (1 - c) ** 2
            else:
                off_diagonal += c**2
    return on_diagonal, off_diagonal


@pytest.mark.parametrize("lambda_", [0.0, 0.0051, 1.0])
@pytest.mark.parametrize("shape", [(6, 4), (3, 7), (2, 1)])
def test_barlow_twins_is_the_papers_equation(shape: tuple[int, int], lambda_: float) -> None:
    z1, z2 = pair(*shape)
    on_diagonal, off_diagonal = literal_terms(z1, z2)
    assert barlow_twins(z1, z2, lambda_).item() == pytest.approx(on_diagonal + lambda_ * off_diagonal, rel=1e-9)


def test_the_default_lambda_is_the_papers() -> None:
    assert torch.equal(barlow_twins(*pair()), barlow_twins(*pair(), 0.0051))


def test_loss_and_terms_of_several_pairs_are_their_means() -> None:
    views, pairs = [*pair(), *pair(seed=1)], [(0, 1), (0, 3), (1, 2)]
    on, off = (mean(terms) for terms in zip(*(literal_terms(views[i], views[j]) for i, j in pairs), strict=True))
    loss, terms = barlow_twins_and_metrics(views, pairs, 0.3)
    assert loss.item() == pytest.approx(on + 0.3 * off)
    assert [terms["on_diagonal"].item(), terms["off_diagonal"].item()] == pytest.approx([on, off])


def test_barlow_is_not_normalized_over_features() -> None:
    """Scaling and shifting a dimension changes nothing; scaling a sample does."""
    z1, z2 = pair()
    loss = barlow_twins(z1, z2, 0.5)
    scale, shift = torch.tensor([9.0, 3.0, 20.0, 5.0]), torch.tensor([5.0, -3.0, 0.0, 100.0])
    torch.testing.assert_close(barlow_twins(z1 * scale + shift, z2 - shift, 0.5), loss, rtol=1e-4, atol=0)
    assert abs(barlow_twins(z1 * torch.linspace(0.1, 3, 6)[:, None], z2, 0.5) - loss) > 1e-2


def test_barlow_pulls_off_diagonals_to_zero_not_to_minus_one() -> None:
    """Two dimensions that mirror each other cost as much as two that are equal, and more than independent ones."""
    a = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    b = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    costs = {}
    for name, second in (("independent", b), ("equal", a), ("mirrored", -a)):
        z = torch.stack((a, second), dim=1)
        costs[name] = barlow_twins(z, z, 1.0).item()
    assert costs["independent"] == pytest.approx(0, abs=1e-8)
    assert costs["equal"] == pytest.approx(costs["mirrored"]) == pytest.approx(2, abs=1e-3)


def test_barlow_diagonals_are_pulled_to_one() -> None:
    z, _ = pair()
    assert barlow_twins(z, z, 0).item() == pytest.approx(0, abs=1e-6)
    assert barlow_twins(z, -z, 0).item() == pytest.approx(4 * 4, rel=1e-3)


def test_the_order_of_dimensions_and_of_views_does_not_matter() -> None:
    z1, z2 = pair()
    loss, dims = barlow_twins(z1, z2, 0.5), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(barlow_twins(z1[:, dims], z2[:, dims], 0.5), loss)
    torch.testing.assert_close(barlow_twins(z2, z1, 0.5), loss)
    assert abs(barlow_twins(z1, z2[:, dims], 0.5) - loss) > 1e-2


@pytest.mark.parametrize("z", [torch.randn(1, 5), torch.full((4, 5), 3.0), torch.zeros(4, 5)])
def test_a_dimension_that_does_not_vary_costs_one_and_has_no_gradient(z: Tensor) -> None:
    """One image, equal embeddings, embeddings of zero."""
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = barlow_twins(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(5)
    assert torch.equal(z1.grad, torch.zeros_like(z))


def test_a_large_common_offset_does_not_drown_the_correlations() -> None:
    z1, z2 = (z.float() for z in pair(32, 4))
    torch.testing.assert_close(barlow_twins(z1 + 1000, z2 + 1000), barlow_twins(z1, z2), rtol=1e-2, atol=1e-4)


def test_wrong_inputs_are_refused() -> None:
    z1, z2 = pair()
    with pytest.raises(ValueError, match=r"equal shape.*\(6, 4\) and \(5, 4\)"):
        barlow_twins(z1, z2[:5])
    with pytest.raises(ValueError, match="with a row"):
        barlow_twins(z1[:0], z2[:0])
    with pytest.raises(ValueError, match="floating"):
        barlow_twins(z1.long(), z2.long())
    for lambda_ in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"lambda_ must be a number of 0 or more, not {lambda_}"):
            barlow_twins(z1, z2, lambda_)
    with pytest.raises(ValueError, match="at least one pair"):
        barlow_twins_and_metrics((z1, z2), ())
