"""What methods that compare views share: which views there are, and how they go through a network.

Multi-crop, Caron et al. (SwAV), https://arxiv.org/abs/2006.09882, section 3.3: a few global views, and many small local
ones that cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.backbone import Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, MethodOptions


class ViewsTogetherOptions(MethodOptions):
    """Options of methods whose papers pass one view at a time."""

    views_together: bool = False
    """Pass the views of one size through the backbone (and its momentum encoder) as one batch, and all views through
    the heads: fewer and larger kernels. It changes the method where there are batch norms, which then see the views
    together, as SimCLR's do and this paper's do not; without batch norm, dropout and drop-path only rounding differs.
    Off: one view at a time."""


def one_view(batch: Batch, method: str) -> Tensor:
    """Returns the images of the only view. Raises UserError if there is not exactly one."""
    if len(batch.views) != 1:
        raise UserError(f"views: {method} needs exactly 1 view of an image, not {len(batch.views)}: set their counts")
    return batch.views[0].image


def two_views(batch: Batch, method: str) -> tuple[Tensor, Tensor]:
    """Returns the images of the two views. Raises UserError if there are not two."""
    if len(batch.views) != 2:
        raise UserError(f"views: {method} needs exactly 2 views of an image, not {len(batch.views)}: set their counts")
    return batch.views[0].image, batch.views[1].image


def global_and_local(batch: Batch, method: str, least: int = 2) -> tuple[list[Tensor], int]:
    """Returns the images of all views, and how many views are global: the first ones, as large as the very first.

    Args:
        batch: its views come in the recipe's order, the global ones first.
        method: for the message.
        least: the fewest global views that the method can work with.

    Raises:
        UserError: if there are fewer, or a later view is as large as the global ones or larger.
    """
    images = [view.image for view in batch.views]
    count = _equal_sides(images)
    if count < least:
        raise UserError(f"views: {method} needs {least} or more views of the first one's size, but there are {count}")
    sides = [image.shape[-1] for image in images]
    if any(side >= sides[0] for side in sides[count:]):
        raise UserError(f"views: {method} needs its largest views first, not sizes of {', '.join(map(str, sides))}")
    return images, count


def each_view(network: Callable[[Tensor], Any], views: Sequence[Tensor], together: bool = True) -> list[Tensor]:
    """Runs a network over the views: adjacent views of one size as one batch, or one view at a time.

    Args:
        network: a backbone, whose pooled features are returned, or a head: (M, …) → (M, E).
        views: the images of each view, (N, C, H, W) of a size of their own, or their features, (N, D) each.
        together: whether batch norms see the views of one size together, and a head's all views.

    Returns:
        one (N, E) for each view, in order.
    """

    def run(images: Tensor) -> Tensor:
        output = network(images)
        result: Tensor = output.pooled if isinstance(output, Features) else output
        return result

    if not together:
        return [run(view) for view in views]
    results: list[Tensor] = []
    while len(results) < len(views):
        rest = views[len(results) :]
        count = _equal_sides(rest)
        results += run(as_one_batch(rest[:count])).chunk(count)
    return results


def as_one_batch(views: Sequence[Tensor]) -> Tensor:
    """Returns `torch.cat(views)`, without a copy if they follow each other in memory, as views made together do.

    Args:
        views: (N, …) each.
    """
    first = views[0]
    if len(views) == 1:
        return first
    if torch.compiler.is_compiling() or any(view.requires_grad for view in views):
        return torch.cat(list(views))
    step = len(first) * first.stride(0)
    for number, view in enumerate(views):
        same = (view.dtype, view.shape, view.stride()) == (first.dtype, first.shape, first.stride())
        adjacent = view.storage_offset() == first.storage_offset() + number * step
        if not (same and adjacent and view.untyped_storage()._cdata == first.untyped_storage()._cdata):
            return torch.cat(list(views))
    return first.as_strided((len(views) * len(first), *first.shape[1:]), first.stride())


def _equal_sides(views: Sequence[Tensor]) -> int:
    """How many of the first views have the very first one's size."""
    # A plain loop over sides: not every torch.compile can follow a grouping by shapes.
    others = [index for index, view in enumerate(views) if view.shape[-1] != views[0].shape[-1]]
    return others[0] if others else len(views)
