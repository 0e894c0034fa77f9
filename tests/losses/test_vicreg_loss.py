"""VICReg's loss against a literal transcription of the paper's formulas, term by term, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import vicreg, vicreg_terms


def pair(images: int = 6, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Some dimensions have a standard deviation below 1 and some above, so that both sides of the hinge are met."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, images, dim, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 3, dim) + 0.3
    return z[0].to(dtype), z[1].to(dtype)


def covariance(z: Tensor, i: int, j: int) -> float:
    x, y = z[:, i].tolist(), z[:, j].tolist()
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (len(x) - 1)


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


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("shape", [(6, 4), (3, 7), (2, 1)])
def test_vicreg_is_the_papers_formula(shape: tuple[int, int], weights: tuple[float, float, float]) -> None:
    z1, z2 = pair(*shape)
    expected = sum(weight * term for weight, term in zip(weights, literal_terms(z1, z2), strict=True))
    assert vicreg(z1, z2, *weights).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_vicreg_weighs_by_25_25_and_1_unless_told() -> None:
    z1, z2 = pair()
    assert torch.equal(vicreg(z1, z2), vicreg(z1, z2, 25, 25, 1, 1e-4))


def test_the_three_terms_are_offered_without_weights() -> None:
    z1, z2 = pair()
    terms = vicreg_terms((z1, z2), ((0, 1),), 0.01)
    assert [term.item() for term in terms] == pytest.approx(literal_terms(z1, z2, 0.01))
    assert (terms.invariance, terms.variance, terms.covariance) == tuple(terms)


def test_vicreg_gradient_is_right() -> None:
    z1, z2 = (z.requires_grad_() for z in pair(5, 3))
    assert torch.autograd.gradcheck(vicreg, (z1, z2))


def test_vicreg_does_not_see_the_order_of_images_dimensions_and_views() -> None:
    z1, z2 = pair()
    loss, images, dims = vicreg(z1, z2), torch.tensor([3, 1, 5, 4, 0, 2]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(vicreg(z1[images], z2[images]), loss)
    torch.testing.assert_close(vicreg(z1[:, dims], z2[:, dims]), loss)
    torch.testing.assert_close(vicreg(z2, z1), loss)
    assert abs(vicreg(z1, z2[images]) - loss) > 1e-2


def test_vicreg_does_not_see_a_common_offset_but_sees_the_scale() -> None:
    z1, z2 = pair()
    torch.testing.assert_close(vicreg(z1 + 5, z2 + 5), vicreg(z1, z2))
    invariance, variance, redundancy = vicreg_terms((z1, z2), ((0, 1),))
    scaled = vicreg_terms((3 * z1, 3 * z2), ((0, 1),))
    torch.testing.assert_close(scaled.invariance, 9 * invariance)
    torch.testing.assert_close(scaled.covariance, 81 * redundancy)
    assert scaled.variance < variance


@pytest.mark.parametrize("z", [torch.randn(1, 5), torch.full((4, 5), 3.0), torch.zeros(4, 5)])
def test_embeddings_that_do_not_vary_cost_the_hinge_alone(z: Tensor) -> None:
    """One image (whose variance would be 0/0), equal embeddings, embeddings of zero."""
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = vicreg(z1, z2)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    assert torch.equal(z1.grad, torch.zeros_like(z))


def test_one_image_still_brings_its_views_together() -> None:
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


def test_the_means_are_over_pairs_of_views() -> None:
    views = [*pair(), *pair(seed=1)]
    pairs = [(0, 1), (0, 3), (1, 2)]
    expected = torch.tensor([literal_terms(views[a], views[b]) for a, b in pairs], dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(torch.stack(vicreg_terms(views, pairs)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vicreg_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = (z.mul(300).to(dtype) for z in pair(16, 8))  # whose squared covariances float16 cannot hold
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vicreg(z1, z2)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert torch.equal(loss, vicreg(z1.float(), z2.float()))


def test_vicreg_of_float64_stays_float64() -> None:
    assert vicreg(*pair()).dtype == torch.float64


def test_vicreg_refuses_wrong_shapes_and_numbers() -> None:
    z1, z2 = pair()
    with pytest.raises(ValueError, match=r"equal shape.*\(6, 4\) and \(5, 4\)"):
        vicreg(z1, z2[:5])
    with pytest.raises(ValueError, match="covariance must be a number of 0 or more, not -1"):
        vicreg(z1, z2, covariance=-1)
    with pytest.raises(ValueError, match="epsilon must be positive, not 0"):
        vicreg(z1, z2, epsilon=0)
    with pytest.raises(ValueError, match="at least one pair"):
        vicreg_terms((z1, z2), ())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_vicreg_on_cuda_never_waits_for_the_device() -> None:
    z1, z2 = (z.cuda().requires_grad_() for z in pair(64, 32, dtype=torch.float32))
    vicreg(z1, z2).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = vicreg(z1, z2)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), vicreg(z1.cpu(), z2.cpu()), rtol=1e-4, atol=1e-5)
