"""SIGReg against the paper's formula point by point, and against the exact integral; its directions."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from literal import dot, mean, rows
from torch import Tensor

from sslcli.losses import gaussian_directions, sigreg


def literal(values: list[float], limit: float, points: int) -> float:
    """Algorithm 1 of the paper for one direction: the trapezoidal rule over both signs of t."""
    step = 2 * limit / (points - 1)
    total = 0.0
    for k in range(points):
        t = -limit + k * step
        gaussian = math.exp(-t * t / 2)
        found = sum(cmath.exp(1j * t * x) for x in values) / len(values)
        total += abs(found - gaussian) ** 2 * gaussian * (step / 2 if k in (0, points - 1) else step)
    return total * len(values)


def exact(values: list[float]) -> float:
    """The integral over all t, term by term: of cosines times Gaussians."""
    n = len(values)
    pairs = sum(math.exp(-((a - b) ** 2) / 2) for a in values for b in values)
    alone = sum(math.exp(-(a**2) / 4) for a in values)
    return math.sqrt(2 * math.pi) * pairs / n - 2 * math.sqrt(math.pi) * alone + n * math.sqrt(2 * math.pi / 3)


def directions(dim: int, count: int) -> Tensor:
    return gaussian_directions(torch.rand(dim * count, generator=torch.Generator().manual_seed(5)).double(), dim)


def along(z: Tensor, a: Tensor) -> list[list[list[float]]]:
    """Of each view, along each direction, the numbers of its batch."""
    columns = [a[:, k].tolist() for k in range(a.shape[1])]
    return [[[dot(row, column) for row in view] for column in columns] for view in z.tolist()]


@pytest.mark.parametrize(("limit", "points"), [(5.0, 17), (3.0, 33), (5.0, 16), (2.0, 2)])
def test_it_is_the_papers_algorithm(limit: float, points: int) -> None:
    z, a = rows(2, 7, 4), directions(4, 3)
    expected = mean([literal(values, limit, points) for view in along(z, a) for values in view])
    assert sigreg(z, a, limit, points).item() == pytest.approx(expected, rel=1e-12)
    assert sigreg(z[0], a, limit, points).item() == pytest.approx(
        mean([literal(values, limit, points) for values in along(z[:1], a)[0]]), rel=1e-12
    )


def test_seventeen_points_are_the_exact_integral_for_embeddings_of_common_size() -> None:
    z, a = rows(1, 50, 4), directions(4, 5)
    values = along(z, a)[0]
    assert sigreg(z, a).item() == pytest.approx(mean([exact(each) for each in values]), rel=1e-4)
    # Those of the authors' code end at 3, where the Gaussian weight still has 0.3% of its integral.
    assert sigreg(z, a, 3.0, 33).item() == pytest.approx(mean([exact(each) for each in values]), rel=0.05)


def test_it_is_about_one_for_gaussian_embeddings_of_any_number_and_grows_with_the_number_for_others() -> None:
    a = directions(8, 64)
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert expected == pytest.approx(1.06, abs=0.005)
    for count in (100, 400):
        gaussian = torch.stack([rows(count, 8, seed=seed) for seed in range(30)])
        assert sigreg(gaussian, a).item() == pytest.approx(expected, rel=0.12)
        for other in (2 * gaussian, gaussian + 1, gaussian * torch.eye(8)[0]):
            assert sigreg(other, a) > 3 * expected
    # A collapse costs in proportion to the batch, least where all are zero.
    assert sigreg(torch.zeros(10, 8), a.float()).item() == pytest.approx(0.41 * 10, rel=0.01)
    assert sigreg(torch.ones(10, 8), a.float()) > 0.41 * 10


def test_its_gradient_makes_embeddings_gaussian() -> None:
    z = (0.1 * rows(64, 4) + 2).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(300):
        optimizer.zero_grad()
        a = gaussian_directions(torch.rand(4 * 16, generator=torch.Generator().manual_seed(step)).double(), 4)
        sigreg(z, a).backward()
        optimizer.step()
    assert z.mean(dim=0).abs().max() < 0.25
    assert all(0.7 < each < 1.7 for each in z.var(dim=0).tolist())  # 0.01 before
    assert sigreg(z, a) < 0.5  # 145 before


def test_directions_have_length_one_no_preference_and_are_finite_for_every_number() -> None:
    a = gaussian_directions(torch.rand(3 * 20000, generator=torch.Generator().manual_seed(0)), 3)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(20000))
    torch.testing.assert_close(a @ a.T / 20000, torch.eye(3) / 3, atol=0.01, rtol=0)
    assert a.mean(dim=1).abs().max() < 0.02
    edges = torch.tensor([0.0, 2.0**-149, 2.0**-30, 0.5, 1 - 2.0**-24, 1 - 2.0**-24])
    assert gaussian_directions(edges, 2).isfinite().all()


@pytest.mark.parametrize(
    ("z", "a", "settings"),
    [
        ((4,), (4, 2), {}),
        ((3, 4), (3, 2), {}),
        ((0, 4), (4, 2), {}),
        ((3, 4), (4, 2), {"points": 1}),
        ((3, 4), (4, 2), {"limit": 0.0}),
    ],
)
def test_what_does_not_fit_is_refused(z: tuple[int, ...], a: tuple[int, ...], settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="are needed"):
        sigreg(torch.ones(z), torch.ones(a), **settings)
