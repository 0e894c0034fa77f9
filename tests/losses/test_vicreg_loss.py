"""VICReg's loss against a literal transcription of the paper's formulas, term by term, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from literal import mean, rows
from torch import Tensor

from sslcli.losses import vicreg, vicreg_and_metrics


def pair(images: int = 6, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some dimensions have a standard deviation below 1 and some above, for both sides of the hinge."""
    first, second = rows(2, images, dim, seed=seed) * torch.linspace(0.2, 3, dim) + 0.3
    return first, second


def covariance(z: Tensor, i: int, j: int) -> float:
    x, y = z[:, i].tolist(), z[:, j].tolist()
    return sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / (len(x) - 1)


def literal_terms(z1: Tensor, z2: Tensor, epsilon: float = 1e-4) -> tuple[float, float, float]:
    """Invariance, variance and covariance, element by element."""
    images, dims = z1.shape
    invariance = 0.0
    for a, b in zip(z1.tolist(), z2.tolist(), strict=True):
        invariance += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / dims / images
    variance = redundancy = 0.0
    for z in (z1, z2):
        for i in range(dims):
            variance += max(0.0, 1 - math.sqrt(covariance(z, i, i) + epsilon)) / dims / 2
            redundancy += sum(covariance(z, i, j) ** 2 for j in range(dims) if j != i) / dims
    return invariance, variance, redundancy


def terms(*views: Tensor) -> dict[str, Tensor]:
    return vicreg_and_metrics(views, ((0, 1),))[1]


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("shape", [(6, 4), (3, 7), (2, 1)])
def test_vicreg_is_the_papers_formula(shape: tuple[int, int], weights: tuple[float, float, float]) -> None:
    z1, z2 = pair(*shape)
    expected = sum(weight * term for weight, term in zip(weights, literal_terms(z1, z2), strict=True))
    assert vicreg(z1, z2, *weights).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_default_weights_are_the_papers() -> None:
    assert torch.equal(vicreg(*pair()), vicreg(*pair(), 25, 25, 1, 1e-4))


def test_loss_and_terms_of_several_pairs_are_their_means() -> None:
    views, pairs = [*pair(), *pair(seed=1)], [(0, 1), (0, 3), (1, 2)]
    each = zip(*(literal_terms(views[i], views[j], 0.01) for i, j in pairs), strict=True)
    expected = dict(zip(("invariance", "variance", "covariance"), map(mean, each), strict=True))
    loss, found = vicreg_and_metrics(views, pairs, 2, 3, 5, 0.01)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected)
    weighted = 2 * expected["invariance"] + 3 * expected["variance"] + 5 * expected["covariance"]
    assert loss.item() == pytest.approx(weighted)


def test_the_order_of_dimensions_and_of_views_does_not_matter() -> None:
    z1, z2 = pair()
    loss, dims = vicreg(z1, z2), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(vicreg(z1[:, dims], z2[:, dims]), loss)
    torch.testing.assert_close(vicreg(z2, z1), loss)


def test_a_common_offset_does_not_matter_and_the_scale_does() -> None:
    z1, z2 = pair()
    torch.testing.assert_close(vicreg(z1 + 5, z2 + 5), vicreg(z1, z2))
    plain, scaled = terms(z1, z2), terms(3 * z1, 3 * z2)
    torch.testing.assert_close(scaled["invariance"], 9 * plain["invariance"])
    torch.testing.assert_close(scaled["covariance"], 81 * plain["covariance"])
    assert scaled["variance"] < plain["variance"]


@pytest.mark.parametrize("z", [torch.randn(1, 5), torch.full((4, 5), 3.0), torch.zeros(4, 5)])
def test_embeddings_that_do_not_vary_cost_only_the_hinge(z: Tensor) -> None:
    """One image (whose variance would be 0/0), equal embeddings, embeddings of zero."""
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = vicreg(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    assert torch.equal(z1.grad, torch.zeros_like(z))


def test_the_views_of_a_single_image_still_attract_each_other() -> None:
    z1, z2 = (z.requires_grad_() for z in pair(1))
    loss = vicreg(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (z1 - z2).square().mean().item() + 25 * 0.99)
    torch.testing.assert_close(z1.grad, 25 * 2 * (z1 - z2).detach() / 4)


def test_dimensions_that_vary_enough_cost_nothing() -> None:
    a = torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64, requires_grad=True)
    z = torch.stack((a, torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=torch.float64)), dim=1)
    loss = vicreg(z, z)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_wrong_inputs_are_refused() -> None:
    z1, z2 = pair()
    with pytest.raises(ValueError, match="covariance must be a number of 0 or more, not -1"):
        vicreg(z1, z2, covariance=-1)
    with pytest.raises(ValueError, match="epsilon must be positive, not 0"):
        vicreg(z1, z2, epsilon=0)
    with pytest.raises(ValueError, match="at least one pair"):
        vicreg_and_metrics((z1, z2), ())
