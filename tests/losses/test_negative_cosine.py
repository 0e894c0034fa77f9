"""SimSiam's loss against a literal transcription, and what it must and must not send back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import negative_cosine


def literal(p: Tensor, z: Tensor) -> float:
    """−(p/‖p‖)·(z/‖z‖), row by row."""
    total = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        length_a = math.sqrt(sum(x * x for x in a))
        length_b = math.sqrt(sum(x * x for x in b))
        total += -sum(x * y for x, y in zip(a, b, strict=True)) / (length_a * length_b)
    return total / len(p)


def rows(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_negative_cosine_equals_the_paper_row_by_row() -> None:
    p, z = rows(5, 7, 0), rows(5, 7, 1)
    assert negative_cosine(p, z).item() == pytest.approx(literal(p, z), abs=1e-12)


def test_negative_cosine_has_the_right_gradient() -> None:
    p, z = rows(4, 3, 2).requires_grad_(), rows(4, 3, 3)
    assert torch.autograd.gradcheck(lambda x: negative_cosine(x, z), (p,))


def test_negative_cosine_target_gets_no_gradient() -> None:
    p, z = rows(4, 3, 4).requires_grad_(), rows(4, 3, 5).requires_grad_()
    negative_cosine(p, z).backward()
    assert p.grad is not None
    assert z.grad is None


def test_negative_cosine_knows_parallel_opposite_and_orthogonal_rows() -> None:
    x = torch.tensor([[3.0, 4.0]])
    assert negative_cosine(x, 2 * x).item() == pytest.approx(-1)
    assert negative_cosine(x, -x).item() == pytest.approx(1)
    assert negative_cosine(x, torch.tensor([[-4.0, 3.0]])).item() == pytest.approx(0, abs=1e-7)


def test_negative_cosine_does_not_see_the_length_of_rows() -> None:
    p, z = rows(6, 5, 6), rows(6, 5, 7)
    scale = torch.tensor([1e-3, 0.1, 1, 7, 100, 1e4], dtype=torch.float64).unsqueeze(1)
    assert torch.allclose(negative_cosine(p * scale, z / scale), negative_cosine(p, z), rtol=1e-12)


def test_negative_cosine_of_a_zero_row_is_zero_and_its_gradient_finite() -> None:
    p = torch.zeros(1, 4, requires_grad=True)
    loss = negative_cosine(p, torch.ones(1, 4))
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_negative_cosine_computes_in_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    p, z = rows(8, 64, 8).mul(300).to(dtype), rows(8, 64, 9).mul(300).to(dtype)  # squares overflow float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = negative_cosine(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(literal(p.double(), z.double()), abs=1e-6)


def test_negative_cosine_of_two_halves_averages_to_the_whole() -> None:
    p, z = rows(8, 5, 10), rows(8, 5, 11)
    halves = (negative_cosine(p[:4], z[:4]) + negative_cosine(p[4:], z[4:])) / 2
    assert torch.allclose(halves, negative_cosine(p, z), rtol=1e-12)
