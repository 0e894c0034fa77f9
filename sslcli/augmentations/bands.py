"""The products of `matrices` on a CPU, where most of each matrix is zero.

A filter's row has a few weights, next to each other, so a block of output pixels is a product with the few input pixels
that it touches. Which these are depends on the sample: the host has to know, so a device that would have to be waited
for multiplies whole matrices, and so does code that is compiled, which needs static shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .matrices import centers, weigh
from .selected import takes_subsets

#: Output pixels of a block: larger ones multiply more zeros, smaller ones take more calls.
BLOCK = 32
#: Side of the input plus side of the output, in pixels, from which blocks are faster than whole matrices, on one thread
#: (`benchmarks/views.py --size`, `eager` beside `whole_matrices`): equal for 109 to 96 and for 128 to 128, 1.5 times as
#: fast for 146 to 128, half as fast for 73 to 64, where starting the products takes longer than multiplying.
WORTH = 256
#: Whole matrices are multiplied by all threads, blocks one after the other: on more threads than this they lose.
THREADS = 2


class Block(NamedTuple):
    """Some output pixels of a filter.

    Attributes:
        first: the first of them.
        start: the first input pixel that they depend on.
        weights: (output pixels, input pixels) float32.
    """

    first: int
    start: int
    weights: Tensor


def uses_bands(images: Tensor, size: int) -> bool:
    """Returns whether images (N, C, H, W) become (N, C, size, size) faster by blocks than by whole matrices."""
    large = takes_subsets(images) and max(images.shape[2:]) + size >= WORTH
    return large and torch.get_num_threads() <= THREADS


def block_starts(size: int) -> list[int]:
    """Returns the first output pixel of each block; the last one is a whole block too, and may overlap with another."""
    return [*range(0, size - BLOCK, BLOCK), max(size - BLOCK, 0)]


def filter_blocks(spans: Tensor, size: int, cubic: bool, mirror: Tensor | None = None) -> list[list[Block]]:
    """Returns the filters of `matrices.filter_matrix` by blocks, for each sample; pixels outside the span are left out.

    Args:
        spans: (N, 4) float32 as there, on the CPU; start and length are whole numbers.
        size: output pixels.
        cubic: bicubic, else bilinear.
        mirror: (N,) bool, True for samples to reverse.
    """
    span = spans.view(-1, 4, 1, 1, 1).unbind(1)
    begin, length, _, step = span
    firsts = block_starts(size)
    output = torch.tensor(firsts).view(-1, 1, 1) + torch.arange(0.5, min(BLOCK, size)).view(-1, 1)
    if mirror is not None:
        output = torch.where(mirror.view(-1, 1, 1, 1), size - output, output)
    center = begin + centers(span, output)  # (N, blocks, pixels of a block, 1)
    reach = (2 if cubic else 1) * step.clamp_min(1)
    low, high = center.amin(2, keepdim=True), center.amax(2, keepdim=True)
    # Of pixels p from `start` on, p + 0.5 may be within the reach of a center; what is more has weight 0.
    count = torch.minimum((high - low + 2 * reach).amax(1, keepdim=True).ceil() + 1, length)
    start = torch.minimum(torch.maximum((low - reach).floor(), begin), begin + length - count)
    weights = weigh(span, output, start + torch.arange(0.5, float(count.max())), cubic)
    starts, counts = start.flatten(1).int().tolist(), count.flatten().int().tolist()
    return [
        [Block(*each) for each in zip(firsts, first, blocks[..., :taps].unbind(), strict=True)]
        for first, blocks, taps in zip(starts, weights, counts, strict=True)
    ]


def multiply_blocks(
    rows: Iterable[list[Block]], images: Tensor, columns: Iterable[list[Block]], size: int, clip: bool = False
) -> Tensor:
    """Returns what `matrices.multiply` does, clipped to [0, 1].

    Args:
        rows: the blocks of each sample.
        images: (N, C, H, W), float32; or uint8, which is divided by 255.
        columns: likewise.
        size: of the result in pixels.
        clip: clip after the first of the two passes too.

    Returns:
        (N, C, size, size) float32.
    """
    channels, scale = images.shape[1], 1.0 if images.dtype == torch.float32 else 1 / 255
    results = images.new_empty((len(images), channels, size, size), dtype=torch.float32)
    for image, own_rows, own_columns, result in zip(images, rows, columns, results, strict=True):
        top, bottom = _reach(own_rows)
        left, right = _reach(own_columns)
        # Rows × channels × columns, so that each block is one product for all channels.
        part = results.new_empty(bottom - top, channels, right - left)
        part = part.copy_(image[:, top:bottom, left:right].transpose(0, 1)).flatten(0, 1)
        wide = results.new_empty(len(part), size)
        for first, start, weights in own_columns:
            begin, goal = start - left, wide[:, first : first + len(weights)]
            pixels = part[:, begin : begin + weights.shape[1]]
            torch.addmm(goal, pixels, weights.T, beta=0, alpha=scale, out=goal)  # the factor costs nothing here
        if clip:
            wide.clamp_(0, 1)
        wide = wide.view(bottom - top, channels * size)
        high = results.new_empty(size, channels * size)
        for first, start, weights in own_rows:
            begin = start - top
            torch.mm(weights, wide[begin : begin + weights.shape[1]], out=high[first : first + len(weights)])
        torch.clamp(high.view(size, channels, size).transpose(0, 1), 0, 1, out=result)
    return results


def _reach(blocks: list[Block]) -> tuple[int, int]:
    """The first and the last (excluded) input pixel of a filter."""
    return min(block.start for block in blocks), max(block.start + block.weights.shape[1] for block in blocks)
