"""The D×D product of dimensions, some of its rows at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslcli.losses import dimensions
from sslcli.losses.dimensions import dimension_products


def embeddings(rows: int = 6, width: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("rows", [2, 3, 6])  # few rows go by products of rows, many by stretches
@pytest.mark.parametrize("length", [1, 3, 7, 512])
def test_diagonal_and_squares_are_those_of_the_whole_product(
    monkeypatch: pytest.MonkeyPatch, length: int, rows: int
) -> None:
    monkeypatch.setattr(dimensions, "_PRODUCT_ROWS", length)
    monkeypatch.setattr(dimensions, "stretch_length", lambda width, device: 1)
    a, b = embeddings(rows)
    diagonal, others = dimension_products(a, b, 5)
    found = torch.autograd.grad((1 - diagonal).square().sum() + 3 * others, (a, b))
    whole = a.T @ b / 5
    squares = whole.square().sum() - whole.diagonal().square().sum()
    expected = torch.autograd.grad((1 - whole.diagonal()).square().sum() + 3 * squares, (a, b))
    torch.testing.assert_close(diagonal, whole.diagonal())
    torch.testing.assert_close(others, squares)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [3, 30])
def test_nothing_of_the_products_size_is_kept(rows: int) -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        dimension_products(*embeddings(rows, 50), 3)
    assert max(sizes) == rows * 50
