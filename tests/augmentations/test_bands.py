"""Crop, resize and blur by blocks of their matrices, as on a CPU, against the products with whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslcli.augmentations import bands
from sslcli.augmentations.blur import Blur
from sslcli.augmentations.crop import Crop
from sslcli.augmentations.resampling import Resampling
from sslcli.augmentations.resize import Resize
from sslcli.contracts.views import Operation, Parameters
from sslcli.randomness import uniform

COUNT = 5
#: Height and width of the sources, side of the view: several blocks, the last of which overlaps, one block, and none
#: that is whole; much smaller and much larger than the view.
SHAPES = [(90, 130, 96), (300, 210, 70), (40, 33, 64), (50, 60, 20), (12, 200, 100)]


def both(operation: Operation, images: Tensor, parameters: Parameters, patch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
    patch.setattr(bands, "WORTH", 0)
    by_blocks = operation.apply(images, parameters)
    patch.setattr(bands, "WORTH", 1 << 30)
    return by_blocks, operation.apply(images, parameters)


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("cls", [Crop, Resize])
def test_a_view_by_blocks_is_that_of_whole_matrices(
    cls: type[Resampling], interpolation: Any, height: int, width: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = cls(cls.Options.parse({"interpolation": interpolation}), size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, height, width), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height, width]]).repeat(COUNT, 1)
    parameters = operation.parameters(uniform(5, torch.arange(COUNT), count=operation.draws), sizes)
    parameters["mirror"] = torch.tensor([False, True, False, True, True])
    by_blocks, whole = both(operation, images, parameters, monkeypatch)
    assert by_blocks.dtype == torch.float32
    assert by_blocks.is_contiguous()
    torch.testing.assert_close(by_blocks, whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [100, 64, 20, 1])
@pytest.mark.parametrize("kernel", ["wide", 0.1])
@pytest.mark.parametrize("padding", ["reflect", "edge", "zeros"])
def test_a_blur_by_blocks_is_that_of_whole_matrices(
    padding: Any, kernel: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = Blur(Blur.Options.parse({"kernel": kernel, "padding": padding}), size)
    images = torch.rand(COUNT, 3, size, size, generator=torch.Generator().manual_seed(0))
    before, chosen = images.clone(), torch.tensor([True, False, True, True, True])
    parameters = {"chosen": chosen, "sigma": torch.tensor([0.1, 0.4, 0.9, 1.5, 2.0])}
    by_blocks, whole = both(operation, images, parameters, monkeypatch)
    torch.testing.assert_close(by_blocks, whole, atol=2e-6, rtol=0)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [1, 20, 32, 33, 64, 100, 224])
def test_blocks_cover_every_pixel(size: int) -> None:
    covered = {first + n for first in bands.block_starts(size) for n in range(min(bands.BLOCK, size))}
    assert covered == set(range(size))


def test_large_views_on_a_cpu_are_made_by_blocks_and_all_others_are_not() -> None:
    photographs, tiny = torch.zeros(2, 3, 256, 256), torch.zeros(2, 3, 32, 32)
    assert bands.uses_bands(photographs, 224)
    assert bands.uses_bands(photographs, 96)
    assert not bands.uses_bands(tiny, 32)
    assert not bands.uses_bands(photographs.to("meta"), 224)  # as a GPU: blocks would have to wait for it


def test_a_filter_reads_only_the_pixels_within_its_reach() -> None:
    spans = torch.tensor([[30.0, 64.0, 0.0, 0.5], [10.0, 200.0, 0.0, 200 / 128]])
    enlarging, shrinking = bands.filter_blocks(spans, 128, cubic=True)
    assert [block.weights.shape for block in enlarging] == [
        (32, 21)
    ] * 4  # (32 − 1)/2 + 2·2 pixels and at most one more
    assert [block.weights.shape for block in shrinking] == [(32, 56)] * 4
    for blocks, (begin, end) in ((enlarging, (30, 94)), (shrinking, (10, 210))):
        for block in blocks:
            assert begin <= block.start <= end - block.weights.shape[1]
            torch.testing.assert_close(block.weights.sum(1), torch.ones(32))
