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
    alike: dict[torch.device, dict[torch.dtype, list[str]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            alike.setdefault(tensor.device, {}).setdefault(tensor.dtype, []).append(name)
    found = set()
    for groups in alike.values():
        flags = torch.cat([_all_finite([tensors[name].detach() for name in names]) for names in groups.values()])
        names = [name for group in groups.values() for name in group]
        found |= {name for name, finite in zip(names, flags.tolist(), strict=True) if not finite}
    return next((name for name in tensors if name in found and not _is_mask(tensors[name])), None)


def _all_finite(alike: list[Tensor]) -> Tensor:
    """Whether each of some tensors of one type is finite: its largest magnitude, which needs no memory of its size, is
    NaN if any value is."""
    # torch computes nothing in 8 bits
    values = [each.float() for each in alike] if alike[0].element_size() == 1 else alike
    return torch.stack(torch._foreach_norm(values, float("inf"))).isfinite()


def _is_mask(tensor: Tensor) -> bool:
    zero = tensor == 0
    return bool(zero.any()) and bool((zero | (tensor == -float("inf"))).all())
