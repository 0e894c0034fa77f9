"""BYOL's loss against a literal transcription, and what it must and must not send back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import byol_regression, negative_cosine


def literal(p: Tensor, z: Tensor) -> float:
    """‖p/‖p‖ − z/‖z‖‖², element by element."""
    total = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        length_a = math.sqrt(sum(x * x for x in a))
        length_b = math.sqrt(sum(x * x for x in b))
        total += sum((x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(p)


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_byol_regression_is_the_squared_distance_of_unit_vectors() -> None:
    p, z = rows(5, 7, 0), rows(5, 7, 1)
    assert byol_regression(p, z).item() == pytest.approx(literal(p, z), abs=1e-12)


def test_byol_regression_has_the_right_gradient() -> None:
    p, z = rows(4, 3, 2).requires_grad_(), rows(4, 3, 3)
    assert torch.autograd.gradcheck(lambda x: byol_regression(x, z), (p,))


def test_byol_regression_target_gets_no_gradient() -> None:
    p, z = rows(4, 3, 4).requires_grad_(), rows(4, 3, 5).requires_grad_()
    byol_regression(p, z).backward()
    assert p.grad is not None
    assert z.grad is None


def test_byol_regression_runs_from_zero_to_four() -> None:
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert byol_regression(x, 5 * x).item() == pytest.approx(0, abs=1e-6)
    assert byol_regression(x, -x).item() == pytest.approx(4)


def test_byol_regression_is_two_and_twice_the_negative_cosine() -> None:
    p, z = rows(6, 5, 6), rows(6, 5, 7)
    assert torch.allclose(byol_regression(p, z), 2 + 2 * negative_cosine(p, z), rtol=1e-12)


def test_byol_regression_does_not_see_the_length_of_rows() -> None:
    p, z = rows(6, 5, 8), rows(6, 5, 9)
    assert torch.allclose(byol_regression(1e3 * p, 1e-3 * z), byol_regression(p, z), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_byol_regression_computes_in_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    p, z = rows(8, 64, 10).mul(300).to(dtype), rows(8, 64, 11).mul(300).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = byol_regression(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(literal(p.double(), z.double()), abs=1e-6)
