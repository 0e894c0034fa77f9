"""Separable filters as matrices, for crop, resize and blur.

A separable filter is two products, `Wy @ image @ Wxᵀ`, with matrices for each sample. All shapes are static, so that
the code can be compiled, and pixels outside the given span are never read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def filter_matrix(spans: Tensor, size: int, source: int, cubic: bool, mirror: Tensor | None = None) -> Tensor:
    """Returns the antialiased filters that take `source` pixels to `size`, as PIL defines them.

    An output pixel's filter is centered on its position in the source, widened by the step when downsampling, cut off
    at the span and normalized. Bilinear: the triangle; bicubic: Keys' with a = −0.5.

    Args:
        spans: (N, 4) float32, in source pixels: the span's start, its length, the start of the first output pixel
            (relative to the span's), and the length of an output pixel.
        size: output pixels.
        source: source pixels.
        cubic: bicubic, else bilinear.
        mirror: (N,) bool, True for samples to reverse.

    Returns:
        (N, size, source) float32; each row sums to 1.
    """
    span = spans.view(-1, 4, 1, 1).unbind(1)  # (N, 1, 1) each
    output = torch.arange(0.5, size, device=spans.device).view(1, -1, 1)
    if mirror is not None:
        output = torch.where(mirror.view(-1, 1, 1), size - output, output)
    return weigh(span, output, torch.arange(0.5, source, device=spans.device).view(1, 1, -1), cubic)


def centers(span: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Returns where the centers of output pixels are in the source, relative to the span's start."""
    return torch.addcmul(span[2], output, span[3])


def weigh(span: tuple[Tensor, ...], output: Tensor, pixel: Tensor, cubic: bool) -> Tensor:
    """Returns the weights of source pixels in output pixels, which sum to 1 along the last dimension.

    Args:
        span: the four numbers of `filter_matrix`.
        output: centers of output pixels, in output pixels; broadcasts with the span.
        pixel: centers of source pixels, in source pixels, along the last dimension; likewise.
        cubic: bicubic, else bilinear.
    """
    begin, length, _, step = span
    inside = pixel - begin  # relative to the span's start: small numbers lose fewer digits
    width = step.clamp_min(1)
    distance = (inside / width - centers(span, output).div_(width)).abs_()
    weights = _keys(distance) if cubic else distance.neg_().add_(1).clamp_(min=0)
    weights.mul_((inside > 0) & (inside < length))
    return weights / weights.sum(-1, keepdim=True)


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic with a = −0.5 at a distance ≥ 0 (*Cubic convolution interpolation*, 1981).

    With u = max(2 − d, 0) and q = max(1 − d, 0) its two pieces are one expression: u²(u − 1)/2 + q²(1 − 2q).
    """
    u = (2 - distance).clamp_(min=0)
    v = u - 1
    q = v.clamp(min=0)
    return torch.rsub(q, 1, alpha=2).mul_(q).mul_(q).add_(u.square_().mul_(v), alpha=0.5)


def multiply(rows: Tensor, images: Tensor, columns: Tensor, clip: bool = False) -> Tensor:
    """Returns `rows @ image @ columnsᵀ` for every sample and channel, the columns first.

    Args:
        rows: (N, h, H).
        images: (N, C, H, W) float32.
        columns: (N, w, W).
        clip: clip to [0, 1] after each of the two passes, as PIL does with filters that overshoot.

    Returns:
        (N, C, h, w) float32.
    """
    count, channels, height, width = images.shape
    wide = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2))
    if clip:
        wide = wide.clamp(0, 1)
    planes = wide.view(count * channels, height, columns.shape[1])
    result = torch.bmm(rows.repeat_interleave(channels, 0), planes)  # faster than a broadcast in matmul
    result = result.view(count, channels, rows.shape[1], columns.shape[1])
    return result.clamp(0, 1) if clip else result
