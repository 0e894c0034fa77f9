"""Which tensors may be saved, and trained or evaluated from: those without NaN and infinity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor that holds NaN or infinity, None if all are finite.

    An additive mask, of zeros and −∞ alone, counts as finite: attention layers may keep one in their state.

    Args:
        tensors: by name, on any devices; each device is waited for once. Tensors of integers are finite.
    """
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            by_device.setdefault(tensor.device, []).append(name)
    found = set()
    for names in by_device.values():
        # The largest magnitude needs no memory of a tensor's size, and is NaN if any value is.
        flags = torch.stack([_largest(tensors[name].detach()).isfinite() for name in names]).tolist()
        found |= {name for name, finite in zip(names, flags, strict=True) if not finite}
    return next((name for name in tensors if name in found and not _is_mask(tensors[name])), None)


def _largest(tensor: Tensor) -> Tensor:
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch computes nothing in 8 bits
    return torch.linalg.vector_norm(values, float("inf"))


def _is_mask(tensor: Tensor) -> bool:
    zero = tensor == 0
    return bool(zero.any()) and bool((zero | (tensor == -float("inf"))).all())
