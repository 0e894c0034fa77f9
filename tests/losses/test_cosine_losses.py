"""SimSiam's and BYOL's losses against literal transcriptions, and their values at the ends of their ranges."""

from __future__ import annotations

import math

import pytest
import torch
from literal import cosine, dot, mean, rows

from sslcli.losses import byol_regression, negative_cosine

P, Z = rows(5, 7), rows(5, 7, seed=1)


def test_negative_cosine_is_the_papers_equation() -> None:
    each = [-cosine(p, z) for p, z in zip(P.tolist(), Z.tolist(), strict=True)]
    assert negative_cosine(P, Z).item() == pytest.approx(mean(each), abs=1e-12)


def test_byol_regression_is_the_squared_distance_of_unit_vectors() -> None:
    total = 0.0
    for p, z in zip(P.tolist(), Z.tolist(), strict=True):
        length_p, length_z = math.sqrt(dot(p, p)), math.sqrt(dot(z, z))
        total += sum((x / length_p - y / length_z) ** 2 for x, y in zip(p, z, strict=True))
    assert byol_regression(P, Z).item() == pytest.approx(total / 5, abs=1e-12)


def test_negative_cosine_target_gets_no_gradient() -> None:
    p, z = P.clone().requires_grad_(), Z.clone().requires_grad_()
    negative_cosine(p, z).backward()
    assert p.grad is not None
    assert z.grad is None


def test_parallel_opposite_and_orthogonal_rows() -> None:
    x = torch.tensor([[3.0, 4.0]])
    for other, cos in ((2 * x, 1), (-x, -1), (torch.tensor([[-4.0, 3.0]]), 0)):
        assert negative_cosine(x, other).item() == pytest.approx(-cos, abs=1e-6)
        assert byol_regression(x, other).item() == pytest.approx(2 - 2 * cos, abs=1e-6)
