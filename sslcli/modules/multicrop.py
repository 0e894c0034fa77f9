"""What methods with views of several sizes share: which views are the global ones, and one pass for each resolution.

Caron et al. (SwAV), https://arxiv.org/abs/2006.09882, section 3.3: a few global views, and many small local ones that
cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch


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
        network: (M, C, H, W) → (M, D).
        images: the views, each (N, C, H, W) with a size of its own.

    Returns:
        one (N, D) for each view, in order.
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
