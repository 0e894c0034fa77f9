"""Patches of images and back, and rectangles of patches."""

from __future__ import annotations

import pytest
import torch

from sslcli.modules.masks import random_block
from sslcli.modules.transformer import images_of, patches_of


def test_patches_are_cut_row_by_row_and_put_together_again() -> None:
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 6, 12)
    for number in range(6):
        row, column = divmod(number, 3)
        cut = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(patches[:, number], cut.permute(0, 2, 3, 1).reshape(2, -1))
    assert torch.equal(images_of(patches, 2, (2, 3)), images)


@pytest.mark.parametrize(
    ("scale", "ratio", "shape"),
    [(0.25, (1, 1), (4, 4)), (0.25, (2, 1), (6, 3)), (0.001, (1, 1), (1, 1)), (1.0, (1, 1), (8, 8))],
)
def test_a_block_is_a_rectangle_inside_the_grid(
    scale: float, ratio: tuple[float, float], shape: tuple[int, int]
) -> None:
    uniform = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    uniform[0], uniform[1] = 0.0, 1.0 - 2**-24
    found = random_block(uniform, (8, 8), scale, ratio)
    assert found.shape == (200, shape[0] * shape[1])
    corners = set()
    for indices in found.tolist():
        rows, columns = sorted({i // 8 for i in indices}), sorted({i % 8 for i in indices})
        assert (len(rows), len(columns)) == shape
        assert rows == list(range(rows[0], rows[0] + shape[0]))
        assert columns == list(range(columns[0], columns[0] + shape[1]))
        assert indices == sorted(indices)
        corners.add((rows[0], columns[0]))
    assert {(0, 0), (8 - shape[0], 8 - shape[1])} <= corners
    if shape != (8, 8):
        assert len(corners) > 10
