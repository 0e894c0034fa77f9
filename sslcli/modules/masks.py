"""Hiding patches from a network: masks and subsets, drawn from uniform numbers, and what backbones do with them.

Random subsets, He et al. (MAE), https://arxiv.org/abs/2111.06377; rectangles, Assran et al. (I-JEPA),
https://arxiv.org/abs/2301.08243.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError


def check_request(name: str, tokens: int, mask: Tensor | None, mask_token: Tensor | None, keep: Tensor | None) -> None:
    """Checks the shapes of a backbone's arguments, without waiting for the device.

    Args:
        name: of the backbone, for the message.
        tokens: L, the number of its patches.
        mask: (N, L) bool or None.
        mask_token: (D,) or (1, 1, D), or None.
        keep: (N, K) int64 or None.

    Raises:
        UserError: a shape or type is wrong, or there is a mask without a token, or the other way around.
    """
    if (mask is None) != (mask_token is None):
        given, lacking = ("mask", "mask_token") if mask_token is None else ("mask_token", "mask")
        raise UserError(f"backbone: {name} got a {given} without a {lacking}: pass both, the method owns the token")
    if mask is not None and (mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[1] != tokens):
        raise UserError(f"backbone: {name} needs a mask (N, {tokens}) of bool, not {_kind(mask)}")
    if keep is not None and (keep.dtype != torch.int64 or keep.ndim != 2 or not 0 < keep.shape[1] <= tokens):
        raise UserError(f"backbone: {name} needs `keep` as (N, K) of int64, K from 1 to {tokens}, not {_kind(keep)}")


def check_grid(name: str, view_sizes: Sequence[int], patch_size: int, least: int) -> None:
    """Raises UserError if views have fewer rows of patches than a method of this name can work with."""
    for size in view_sizes:
        if size // patch_size < least:
            there = f"views of {size} px have {size // patch_size} x {size // patch_size} of {patch_size} px"
            raise UserError(
                f"backbone.patch_size: {name!r} needs {least} x {least} patches of a view or more, and {there}: set "
                "smaller patches, or a larger views.size"
            )


def refuse_masks(name: str, *arguments: Tensor | None) -> None:
    """Raises UserError if a mask, its token or a subset of patches is given to the backbone of this name."""
    if any(each is not None for each in arguments):
        raise UserError(
            f"backbone: {name} cannot leave out patches: a method that hides them needs a vision transformer, such as "
            "vit_small"
        )


def refuse_layers(name: str, layers: int, most: int = 1) -> None:
    """Raises UserError if other layers are asked for than the backbone of this name has."""
    if not 1 <= layers <= most:
        there = f"of 1 to {most} layers" if most > 1 else "of its last layer only"
        raise UserError(f"backbone: {name} has the outputs {there}, not of {layers}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def replace_masked(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Returns tokens (N, L, D) with `mask_token` (D,) or (1, 1, D) in the places where `mask` (N, L) is True."""
    return torch.where(mask.unsqueeze(-1), mask_token.reshape(-1).to(tokens.dtype), tokens)


def take(tokens: Tensor, keep: Tensor) -> Tensor:
    """Returns the tokens (N, K, D) of (N, L, D) at the places `keep` (N, K), in this order."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def random_keep(uniform: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns a random subset of the patches of each image, and what is hidden.

    Args:
        uniform: (N, L) numbers in [0, 1), as `Batch.uniform` draws them.
        count: K, the patches to keep.

    Returns:
        `keep` (N, K) int64, ascending, and `mask` (N, L) bool, True where a patch is hidden.
    """
    keep = uniform.argsort(1)[:, :count].sort(1).values
    mask = torch.ones_like(uniform, dtype=torch.bool).scatter(1, keep, torch.zeros_like(keep, dtype=torch.bool))
    return keep, mask


def places(rank: Tensor, count: int) -> Tensor:
    """Returns the `count` places of the largest rank in each image, (N, L) → (N, count) int64, equal ones in order.

    Args:
        rank: bool or integers from 0; a place of rank 0 is not chosen: where there are fewer others than `count`, they
            come again, in the same order; an image without any has place 0.
        count: from 1 to L.
    """
    order = rank.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    repeated = torch.arange(count, device=rank.device) % (rank > 0).sum(1, keepdim=True).clamp_min(1)
    return order.gather(1, repeated)


def random_block(uniform: Tensor, grid: tuple[int, int], scale: float, ratio: tuple[float, float]) -> Tensor:
    """Returns a rectangle of patches of one size for all images, at a random place in each: (N, K) int64, ascending.

    Args:
        uniform: (N, 2) numbers in [0, 1): where the rectangle begins, as shares of the rows and columns that it can.
        grid: rows and columns of patches.
        scale: share of all patches that it covers, before it is rounded to whole ones.
        ratio: its height and width in proportion to one another: (1, 1) for a square.
    """
    rows, columns = grid
    area = scale * rows * columns
    height = min(rows, max(1, round((area * ratio[0] / ratio[1]) ** 0.5)))
    width = min(columns, max(1, round((area * ratio[1] / ratio[0]) ** 0.5)))
    # Numbers, not a tensor of them, which would be copied to the device and waited for.
    top = (uniform[:, :1] * (rows - height + 1)).long().clamp_(max=rows - height)  # N×1
    left = (uniform[:, 1:] * (columns - width + 1)).long().clamp_(max=columns - width)
    inside = torch.arange(height, device=uniform.device)[:, None] * columns
    inside = (inside + torch.arange(width, device=uniform.device)).reshape(1, -1)
    return top * columns + left + inside


def block_size(
    uniform: Tensor, grid: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Returns the height and width of rectangles in whole patches, int64, of a drawn area and shape (I-JEPA).

    One number draws both, as in the authors' code: the largest rectangles are the highest ones. None is as high or as
    wide as the grid.

    Args:
        uniform: numbers in [0, 1), of any shape.
        grid: rows and columns of patches.
        scale: least and largest share of all patches, before it is rounded.
        ratio: least and largest height by width.
    """
    rows, columns = grid
    area = (rows * columns * (scale[0] + uniform * (scale[1] - scale[0]))).floor()
    shape = ratio[0] + uniform * (ratio[1] - ratio[0])
    sides = (area * shape).sqrt(), (area / shape).sqrt()
    height, width = (side.round().long() for side in sides)
    return height.clamp(1, max(1, rows - 1)), width.clamp(1, max(1, columns - 1))


def block_mask(uniform: Tensor, grid: tuple[int, int], height: Tensor, width: Tensor) -> Tensor:
    """Returns (…, L) bool, True within a rectangle of patches at a random place.

    Args:
        uniform: (…, 2) numbers in [0, 1): where it begins, as shares of the rows and columns that it can.
        grid: rows and columns of patches.
        height: (…) int64, its rows.
        width: (…) int64, its columns.
    """
    inside = []
    for axis, (length, side) in enumerate(zip(grid, (height, width), strict=True)):
        free = length - side
        first = (uniform[..., axis] * (free + 1)).long().minimum(free).unsqueeze(-1)
        at = torch.arange(length, device=uniform.device)
        inside.append((at >= first) & (at < first + side.unsqueeze(-1)))
    return (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).flatten(-2)
