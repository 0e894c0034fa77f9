"""What AutoAugment and RandAugment do to an image: PIL's operations, on batches of 8-bit levels.

Each sample has its own operation and value, both tensors. An operation is of one of four kinds, and a kind is one pass
over its samples: a table of 256 entries per channel, a blend with the pixel's gray (`color`), a blend with a smoothed
image (`sharpness`), or a warp. Levels are whole numbers in float32, as PIL rounds after each operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .selected import on_chosen

#: Operations and what their value is.
TABLES = (
    "brightness",  # factor, 0: black, 1: unchanged
    "contrast",  # factor, 0: the mean gray
    "posterize",  # bits that are kept
    "solarize",  # level from which on levels are inverted
    "solarize_add",  # added to levels below 128
    "autocontrast",
    "equalize",
    "invert",
)
COLORS = ("color",)  # factor, 0: gray
SHARPNESS = ("sharpness",)  # factor, 0: smooth
WARPS = (
    "shear_x",  # the input's column is the output's plus this many rows
    "shear_y",
    "translate_x",  # it is the output's plus so many pixels
    "translate_y",
    "rotate",  # degrees, counterclockwise
)
OPERATIONS = (*TABLES, *COLORS, *SHARPNESS, *WARPS)
#: The number of each; −1 is none.
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_FIRST_WARP = len(TABLES) + 2


def to_levels(images: Tensor) -> Tensor:
    """[0, 1] → whole numbers from 0 to 255, float32."""
    return (images * 255).round()


def transform(levels: Tensor, kind: Tensor, value: Tensor, warp: Tensor, fill: Tensor, interpolation: str) -> Tensor:
    """Applies to each sample its operation.

    Args:
        levels: (N, 3, S, S).
        kind: (N,) int64, a number of `OPERATIONS` or −1 for none.
        value: (N,) float32.
        warp: (N, 2, 3) float32, see `warps`.
        fill: (N, 3), levels where a warp sees nothing.
        interpolation: of warps: `nearest`, `bilinear` or `bicubic`.

    Returns:
        (N, 3, S, S), whole numbers from 0 to 255.
    """
    tables, color, sharpness = (kind >= 0) & (kind < len(TABLES)), kind == NUMBER["color"], kind == NUMBER["sharpness"]
    levels = on_chosen(_by_table, levels, tables, kind, value)
    levels = on_chosen(_color, levels, color, value)
    levels = on_chosen(_sharpen, levels, sharpness, value)

    def warped(x: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        seen = F.grid_sample(x, grid, interpolation, padding_mode="border", align_corners=False)
        inside = ((grid >= -1) & (grid < 1)).all(-1).unsqueeze(1)  # as PIL: nothing is blended with the fill
        # PIL cuts off here too. A whole level may come out a little too low.
        return torch.where(inside, (seen + 0.01).clamp(0, 255).floor(), fill.view(-1, 3, 1, 1))

    return on_chosen(warped, levels, kind >= _FIRST_WARP, warp, fill)


def _blend(other: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """From `other`, at factor 0, to the levels at factor 1, and on; cut off to whole levels."""
    return (other + factor * (levels - other)).clamp(0, 255).floor()


def _gray(levels: Tensor) -> Tensor:
    """(N, 3, H, W) → (N, 1, H, W): PIL's conversion, in 16 bits, which float32 computes exactly."""
    red, green, blue = levels[:, 0:1], levels[:, 1:2], levels[:, 2:3]
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def _by_table(levels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    index = levels.long().flatten(2)  # N×3×pixels
    return _tables(levels, index, kind, value).gather(2, index).view_as(levels)


def _tables(levels: Tensor, index: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Returns (N, 3, 256), what becomes of each level."""
    ramp, value = torch.arange(256.0, device=levels.device).expand(*index.shape[:2], 256), value.view(-1, 1, 1)
    unit = torch.exp2(8 - value)
    low, high = levels.amin((2, 3)).unsqueeze(2), levels.amax((2, 3)).unsqueeze(2)
    stretched = ((ramp - low) * 255 / (high - low).clamp_min(1)).clamp(0, 255).floor()
    each = (
        _blend(torch.zeros_like(ramp), ramp, value),
        _blend((_gray(levels).mean((2, 3)) + 0.5).floor().unsqueeze(2), ramp, value),
        (ramp / unit).floor() * unit,
        torch.where(ramp >= value, 255 - ramp, ramp),
        torch.where(ramp < 128, (ramp + value).clamp(max=255), ramp),
        torch.where(high > low, stretched, ramp),
        _equalizing(index, ramp),
        255 - ramp,
    )
    own = kind.clamp(0, len(TABLES) - 1)  # where all samples are computed, others have no table
    return torch.stack(each)[own, torch.arange(len(kind), device=kind.device)]


def _equalizing(index: Tensor, ramp: Tensor) -> Tensor:
    """PIL's table, from the histogram without its highest level; the ramp for an image of hardly more than one."""
    rows = torch.arange(index.shape[0] * index.shape[1], device=index.device).view(*index.shape[:2], 1)
    flat = (index + 256 * rows).flatten()
    counts = torch.zeros(rows.numel() * 256, dtype=torch.int64, device=index.device)
    counts = counts.scatter_add_(0, flat, torch.ones_like(flat)).view_as(ramp)
    step = (index.shape[2] - counts.gather(2, index.amax(2, keepdim=True))) // 255
    below = counts.cumsum(2) - counts
    return torch.where(step > 0, ((below + step // 2) // step.clamp_min(1)).clamp(max=255).to(ramp.dtype), ramp)


def _color(levels: Tensor, factor: Tensor) -> Tensor:
    return _blend(_gray(levels), levels, factor.view(-1, 1, 1, 1))


def _sharpen(levels: Tensor, factor: Tensor) -> Tensor:
    """PIL's smoothing filter has weight 5 in the center and 1 around it, and leaves the border alone."""
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    inside = levels[:, :, 1:-1, 1:-1]
    smooth = ((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inside) / 13).round()
    blended = _blend(smooth, inside, factor.view(-1, 1, 1, 1))
    result = levels.clone()
    result[:, :, 1:-1, 1:-1] = blended
    return result


def warps(kind: Tensor, value: Tensor, size: int) -> Tensor:
    """Returns the matrices of `F.affine_grid`, from the output's place to the input's, each from −1 to 1.

    Args:
        kind: (...) int64, numbers of `OPERATIONS`; others than warps get the identity.
        value: (...) float64.
        size: side of the images in pixels.

    Returns:
        (..., 2, 3) float32.
    """
    zero = torch.zeros_like(value)
    shear_x, shear_y, right, down, angle = (torch.where(kind == NUMBER[name], value, zero) for name in WARPS)
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    # Shears are about the upper left corner, whose place is (−1, −1); translations are in pixels.
    rows = [cos, shear_x - sin, shear_x + 2 * right / size, shear_y + sin, cos, shear_y + 2 * down / size]
    return torch.stack(rows, -1).view(*kind.shape, 2, 3).float()
