"""Barlow Twins' loss against a literal transcription of the paper's equations, its edges, and its share of a matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import barlow_twins, barlow_twins_terms, dimensions
from sslcli.losses.barlow_twins import EPS


def pair(images: int = 6, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, images, dim, generator=generator, dtype=torch.float64)
    z[1] = z[0] + 0.5 * z[1]  # so that the diagonal is not like the rest
    return z[0].to(dtype), z[1].to(dtype)


def column(z: Tensor, i: int) -> list[float]:
    """Dimension i over the batch, standardized."""
    values = z[:, i].tolist()
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + EPS) for v in values]


def literal_terms(z1: Tensor, z2: Tensor) -> tuple[float, float]:
    """Equations 1 and 2, element by element."""
    images, dims = z1.shape
    on_diagonal = off_diagonal = 0.0
    for i in range(dims):
        for j in range(dims):
            c = sum(a * b for a, b in zip(column(z1, i), column(z2, j), strict=True)) / images
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


def test_barlow_twins_weighs_by_the_papers_lambda_unless_told() -> None:
    z1, z2 = pair()
    assert torch.equal(barlow_twins(z1, z2), barlow_twins(z1, z2, 0.0051))


def test_barlow_twins_gradient_is_right() -> None:
    z1, z2 = (z.requires_grad_() for z in pair(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b, 0.5), (z1, z2))


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
    on_same, _ = barlow_twins_terms((z, z), ((0, 1),))
    on_mirrored, _ = barlow_twins_terms((z, -z), ((0, 1),))
    assert on_same.item() == pytest.approx(0, abs=1e-6)
    assert on_mirrored.item() == pytest.approx(4 * 4, rel=1e-3)


def test_barlow_twins_does_not_see_the_order_of_images_dimensions_and_views() -> None:
    z1, z2 = pair()
    loss, images, dims = barlow_twins(z1, z2, 0.5), torch.tensor([3, 1, 5, 4, 0, 2]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(barlow_twins(z1[images], z2[images], 0.5), loss)
    torch.testing.assert_close(barlow_twins(z1[:, dims], z2[:, dims], 0.5), loss)
    torch.testing.assert_close(barlow_twins(z2, z1, 0.5), loss)
    assert abs(barlow_twins(z1, z2[images], 0.5) - loss) > 1e-2
    assert abs(barlow_twins(z1, z2[:, dims], 0.5) - loss) > 1e-2


@pytest.mark.parametrize("z", [torch.randn(1, 5), torch.full((4, 5), 3.0), torch.zeros(4, 5)])
def test_a_dimension_that_does_not_vary_costs_one_and_has_no_gradient(z: Tensor) -> None:
    """One image, equal embeddings, embeddings of zero."""
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = barlow_twins(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(5)
    assert torch.equal(z1.grad, torch.zeros_like(z))


def test_the_terms_of_several_pairs_are_their_means() -> None:
    views = [*pair(), *pair(seed=1)]
    pairs = [(0, 1), (0, 3), (1, 2)]
    expected = torch.tensor([literal_terms(views[a], views[b]) for a, b in pairs], dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(torch.stack(barlow_twins_terms(views, pairs)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_barlow_twins_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = (z.mul(300).to(dtype) for z in pair(16, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = barlow_twins(z1, z2)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, barlow_twins(z1.float(), z2.float()))


def test_barlow_twins_of_float64_stays_float64() -> None:
    assert barlow_twins(*pair()).dtype == torch.float64


def test_a_large_common_offset_does_not_drown_the_correlations() -> None:
    z1, z2 = pair(32, 4, dtype=torch.float32)
    torch.testing.assert_close(barlow_twins(z1 + 1000, z2 + 1000), barlow_twins(z1, z2), rtol=1e-2, atol=1e-4)


def test_barlow_twins_refuses_wrong_shapes_and_weights() -> None:
    z1, z2 = pair()
    with pytest.raises(ValueError, match=r"equal shape.*\(6, 4\) and \(5, 4\)"):
        barlow_twins(z1, z2[:5])
    with pytest.raises(ValueError, match="equal shape"):
        barlow_twins(z1[0], z2[0])
    with pytest.raises(ValueError, match="with a row"):
        barlow_twins(z1[:0], z2[:0])
    with pytest.raises(ValueError, match="floating"):
        barlow_twins(z1.long(), z2.long())
    with pytest.raises(ValueError, match="lambda_ must be a number of 0 or more, not -1"):
        barlow_twins(z1, z2, -1)
    with pytest.raises(ValueError, match="lambda_"):
        barlow_twins(z1, z2, float("nan"))
    with pytest.raises(ValueError, match="at least one pair"):
        barlow_twins_terms((z1, z2), ())


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_shares_of_the_matrix_make_it_up(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Dimensions that the processes don't divide evenly, and processes without any."""
    a, b = pair(6, 4)
    product = a.T @ b / 6
    monkeypatch.setattr(dimensions, "world_size", lambda: processes)
    diagonals, others = [], 0.0
    for process in range(processes):
        monkeypatch.setattr(dimensions, "rank", lambda process=process: process)
        diagonal, off = dimensions.dimension_products(a, b, 6)
        diagonals.append(diagonal)
        others += off.item()
    torch.testing.assert_close(torch.cat(diagonals), product.diagonal())
    assert others == pytest.approx((product.square().sum() - product.diagonal().square().sum()).item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_barlow_twins_on_cuda_never_waits_for_the_device() -> None:
    z1, z2 = (z.cuda().requires_grad_() for z in pair(64, 32, dtype=torch.float32))
    barlow_twins(z1, z2).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = barlow_twins(z1, z2)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), barlow_twins(z1.cpu(), z2.cpu()), rtol=1e-4, atol=1e-5)
