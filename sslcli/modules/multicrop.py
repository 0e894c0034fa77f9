"""What methods with several views share: which views are the global ones, and how many go through a network at once.

Caron et al. (SwAV), https://arxiv.org/abs/2006.09882, section 3.3: a few global views, and many small local ones that
cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, MethodOptions


class ViewsTogetherOptions(MethodOptions):
    """Options of methods whose papers pass one view at a time."""

    views_together: bool = False
    """Pass the views of one size through the backbone (and its momentum encoder) as one batch, and all views through
    the heads: fewer and larger kernels. It changes the method where there are batch norms, which then see the views
    together, as SimCLR's do and this paper's do not; without batch norm, dropout and drop-path only rounding differs.
    Off: one view at a time."""


def global_count(batch: Batch, method: str, least: int = 2, most: int | None = None) -> int:
    """Returns how many views are global: the leading ones that are as large as the first.

    Args:
        batch: its views come in the recipe's order, the global ones first.
        method: for the message.
        least: the fewest global views that the method can work with.
        most: the most; None: any number.

    Raises:
        UserError: if there are fewer or more, or a later view is as large as the global ones or larger.
    """
    sides = [view.image.shape[-1] for view in batch.views]
    others = [place for place, side in enumerate(sides) if side != sides[0]]
    count = others[0] if others else len(sides)
    if count < least or (most is not None and count > most):
        wanted = str(least) if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"views: {method} needs {wanted} views of the first one's size, and there are {count}")
    if any(side >= sides[0] for side in sides[count:]):
        raise UserError(f"views: {method} needs its largest views first, not sizes of {', '.join(map(str, sides))}")
    return count


def by_resolution(network: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Runs a network once over each stretch of views of one size; batch norms see such a stretch together.

    Args:
        network: (M, C, H, W) → (M, D), or a head, (M, D) → (M, E), which sees all views.
        images: the views, each (N, C, H, W) with a size of its own, or their features, each (N, D).

    Returns:
        one (N, D) or (N, E) for each view, in order.
    """
    results: list[Tensor] = []
    while len(results) < len(images):
        # A plain comparison of sides: a group by shapes is nothing that every torch.compile can follow.
        rest = images[len(results) :]
        others = [place for place, image in enumerate(rest) if image.shape[-1] != rest[0].shape[-1]]
        count = others[0] if others else len(rest)
        joined = rest[0] if count == 1 else torch.cat(list(rest[:count]))
        results += network(joined).chunk(count)
    return results


def each_view(network: Callable[[Tensor], Tensor], images: Sequence[Tensor], *, together: bool) -> list[Tensor]:
    """Runs a network over views `by_resolution` (`ViewsTogetherOptions`), or over one at a time.

    Args:
        network: as for `by_resolution`.
        images: as for `by_resolution`.
        together: batch norms see the views of one size together; else one view at a time.

    Returns:
        as `by_resolution`.
    """
    return by_resolution(network, images) if together else [network(image) for image in images]
