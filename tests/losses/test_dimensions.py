"""The D×D product of dimensions: by products of rows where that is smaller, and shared by the processes."""

from __future__ import annotations

import pytest
import torch
from literal import rows

from sslcli.losses import dimensions
from sslcli.losses.dimensions import dimension_products


@pytest.mark.parametrize("count", [2, 3, 6])  # few rows go by products of rows
def test_diagonal_and_squares_are_those_of_the_whole_product(count: int) -> None:
    a, b = (z.requires_grad_() for z in (rows(count, 7), rows(count, 7, seed=1)))
    diagonal, others = dimension_products(a, b, 5)
    found = torch.autograd.grad((1 - diagonal).square().sum() + 3 * others, (a, b))
    whole = a.T @ b / 5
    squares = whole.square().sum() - whole.diagonal().square().sum()
    expected = torch.autograd.grad((1 - whole.diagonal()).square().sum() + 3 * squares, (a, b))
    torch.testing.assert_close(diagonal, whole.diagonal())
    torch.testing.assert_close(others, squares)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_the_processes_shares_add_up_to_the_matrix(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Dimensions that the processes don't divide evenly, and processes without any."""
    a, b = rows(6, 4), rows(6, 4, seed=1)
    product = a.T @ b / 6
    monkeypatch.setattr(dimensions, "world_size", lambda: processes)
    diagonals, others = [], 0.0
    for process in range(processes):
        monkeypatch.setattr(dimensions, "rank", lambda process=process: process)
        diagonal, off = dimension_products(a, b, 6)
        diagonals.append(diagonal)
        others += off.item()
    torch.testing.assert_close(torch.cat(diagonals), product.diagonal())
    assert others == pytest.approx((product.square().sum() - product.diagonal().square().sum()).item())
