"""Applies an operation to some samples of a batch.

On a CPU it works on those samples alone; in compiled code and on other devices, where that would need a host
synchronization or a dynamic shape, it works on all samples and then restores the others. Both ways give the same
numbers, and a sample that is not chosen is bitwise unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def takes_subsets(images: Tensor) -> bool:
    """Returns whether samples can be selected by index without a host synchronization or a dynamic shape."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


def select(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Returns `torch.where(condition, one, other)` of finite float tensors.

    On a CPU that takes ten times as long as arithmetic, so `condition` becomes a weight there, whose 0 and 1 give the
    same numbers.
    """
    if takes_subsets(condition):
        return torch.lerp(other, one, condition.to(one.dtype))
    return torch.where(condition, one, other)


def on_chosen(function: Callable[..., Tensor], images: Tensor, chosen: Tensor, *others: Tensor) -> Tensor:
    """Applies `function(images, *others)` to the chosen samples.

    Args:
        function: keeps the shape (N, C, H, W) of its first argument and treats each sample independently.
        images: (N, C, H, W).
        chosen: (N,) bool.
        others: further arguments, one row per sample.

    Returns:
        (N, C, H, W), a new tensor unless no sample was chosen.
    """
    if not takes_subsets(images):
        return torch.where(chosen.view(-1, 1, 1, 1), function(images, *others), images)
    index = chosen.nonzero().squeeze(1)
    if not len(index):
        return images
    return images.index_copy(0, index, function(images[index], *(other[index] for other in others)))
