"""Sinkhorn's iterations against a literal transcription of the paper's listing, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses.sinkhorn import sinkhorn


def random_scores(samples: int = 7, prototypes: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Cosines of random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples + prototypes, 5, generator=generator, dtype=torch.float64)
    z = torch.nn.functional.normalize(z, dim=1)
    return (z[:samples] @ z[samples:].T).to(dtype)


def literal_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The listing `sinkhorn` of the paper's appendix A, one number at a time; its Q is (prototypes, samples)."""
    samples, prototypes = scores.shape
    Q = [[math.exp(scores[b, k].item() / epsilon) for b in range(samples)] for k in range(prototypes)]
    total = sum(sum(row) for row in Q)
    Q = [[value / total for value in row] for row in Q]
    for _ in range(iterations):
        for k in range(prototypes):
            u = sum(Q[k])
            Q[k] = [value * (1 / prototypes) / u for value in Q[k]]
        for b in range(samples):
            v = sum(Q[k][b] for k in range(prototypes))
            for k in range(prototypes):
                Q[k][b] *= (1 / samples) / v
    for b in range(samples):
        column = sum(Q[k][b] for k in range(prototypes))
        for k in range(prototypes):
            Q[k][b] /= column
    return torch.tensor(Q, dtype=torch.float64).T


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_the_papers_listing(epsilon: float, iterations: int) -> None:
    scores = random_scores()
    expected = literal_sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, rtol=1e-10, atol=1e-14)


def test_the_defaults_are_the_papers() -> None:
    torch.testing.assert_close(sinkhorn(random_scores()), literal_sinkhorn(random_scores(), 0.05, 3))


@pytest.mark.parametrize("iterations", [1, 3])
def test_each_sample_is_assigned_once(iterations: int) -> None:
    sums = sinkhorn(random_scores(), 0.05, iterations).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(7, dtype=torch.float64), rtol=1e-12, atol=0)


def test_after_many_iterations_every_prototype_has_the_same_share() -> None:
    scores = random_scores()
    few, many = (sinkhorn(scores, 0.1, iterations).sum(dim=0) for iterations in (1, 500))
    torch.testing.assert_close(many, torch.full((4,), 7 / 4, dtype=torch.float64), rtol=1e-9, atol=0)
    assert (few - 7 / 4).abs().max() > 1e-2


def test_the_order_of_samples_and_of_prototypes_does_not_matter() -> None:
    scores = random_scores()
    q = sinkhorn(scores)
    samples, prototypes = torch.tensor([3, 6, 1, 0, 5, 2, 4]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(sinkhorn(scores[samples]), q[samples])
    torch.testing.assert_close(sinkhorn(scores[:, prototypes]), q[:, prototypes])


def test_a_constant_added_to_the_scores_does_not_matter() -> None:
    scores, per_prototype = random_scores(), torch.tensor([5.0, -3.0, 0.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores + 1e3), sinkhorn(scores), rtol=1e-8, atol=1e-12)
    # A prototype that is near to everything is not used more than others: its column is divided by its sum.
    torch.testing.assert_close(sinkhorn(scores + per_prototype), sinkhorn(scores), rtol=1e-8, atol=1e-12)


def test_only_the_ratio_of_scores_and_epsilon_matters() -> None:
    torch.testing.assert_close(sinkhorn(4 * random_scores(), 0.2), sinkhorn(random_scores(), 0.05))


def test_equal_scores_a_single_sample_and_a_single_prototype_are_shared_equally() -> None:
    assert torch.equal(sinkhorn(torch.ones(3, 4)), torch.full((3, 4), 0.25))
    torch.testing.assert_close(sinkhorn(random_scores(samples=1)), torch.full((1, 4), 0.25, dtype=torch.float64))
    assert torch.equal(sinkhorn(random_scores(prototypes=1).float()), torch.ones(7, 1))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_no_size_of_the_scores_overflows(size: float) -> None:
    q = sinkhorn(random_scores(dtype=torch.float32) * size)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(7))


def test_prototypes_and_samples_far_from_all_others_get_their_share_too() -> None:
    assert torch.equal(sinkhorn(torch.tensor([[1.0, -90.0], [1.0, -90.0]])), torch.full((2, 2), 0.5))
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1e4, -1e4]])
    torch.testing.assert_close(sinkhorn(scores)[2], torch.tensor([0.5, 0.5]))


def test_assignments_carry_no_gradient_and_the_scores_are_not_changed() -> None:
    scores = random_scores().requires_grad_()
    assert not sinkhorn(scores, 1.0).requires_grad
    assert torch.equal(scores, random_scores())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_computed_in_float32(dtype: torch.dtype) -> None:
    scores = random_scores(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = sinkhorn(scores)
    assert q.dtype == torch.float32
    assert torch.equal(q, sinkhorn(scores.float()))


def test_rows_that_are_not_used_change_nothing_and_are_assigned_to_nothing() -> None:
    scores = random_scores()
    others = torch.cat((scores, torch.full((3, 4), 50.0, dtype=torch.float64)))  # much nearer than any that is used
    used = torch.arange(10) < 7
    q = sinkhorn(others, used=used)
    torch.testing.assert_close(q[:7], sinkhorn(scores))
    assert torch.equal(q[7:], torch.zeros(3, 4, dtype=torch.float64))
    assert not torch.allclose(sinkhorn(others)[:7], sinkhorn(scores))
    assert torch.equal(sinkhorn(others, used=torch.ones(10, dtype=torch.bool)), sinkhorn(others))


def test_the_first_rows_on_request_are_the_first_rows_of_all() -> None:
    scores, used = random_scores(), torch.arange(7) != 5
    assert torch.equal(sinkhorn(scores, used=used, rows=3), sinkhorn(scores, used=used)[:3])


def test_wrong_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, K\), not \(3,\)"):
        sinkhorn(torch.ones(3))
    with pytest.raises(ValueError, match=r"used must be \(3,\).*not \(4,\)"):
        sinkhorn(torch.ones(3, 2), used=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="positive, not 0"):
        sinkhorn(torch.ones(3, 2), 0)
    with pytest.raises(ValueError, match="at least one iteration"):
        sinkhorn(torch.ones(3, 2), 0.05, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sinkhorn_on_cuda_never_waits_for_the_device() -> None:
    scores, used = random_scores(64, 32, dtype=torch.float32).cuda(), torch.ones(64, dtype=torch.bool, device="cuda")
    sinkhorn(scores, used=used)
    torch.cuda.set_sync_debug_mode("error")
    try:
        q = sinkhorn(scores, used=used)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(q.cpu(), sinkhorn(scores.cpu()), rtol=1e-4, atol=1e-5)


def test_many_iterations_stay_finite_where_prototypes_cannot_be_used_equally() -> None:
    """Two prototypes have one sample only: its column's factor would double with every iteration."""
    q = sinkhorn(torch.tensor([[1.0, 1, 0], [0, 0, 1]]), 0.005, 300)
    torch.testing.assert_close(q, torch.tensor([[0.5, 0.5, 0], [0, 0, 1]]))
