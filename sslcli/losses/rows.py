"""What the losses share: rows of unit length in full precision, and the checks of their arguments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_full_precision(x: Tensor) -> Tensor:
    """Returns half-precision tensors in float32, and others unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_rows(x: Tensor) -> Tensor:
    """Returns the rows of (…, D) scaled to length 1, in float32 at least; rows of zeros stay zeros."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(in_full_precision(x), dim=-1)


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raises ValueError unless both are (N, D) of one shape."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"two (N, D) tensors of equal shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")


def check_negatives(query: Tensor, negatives: Tensor, least: int = 1) -> None:
    """Raises ValueError unless negatives are (K, D) for queries (N, D), K at least `least`."""
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) < least:
        raise ValueError(
            f"negatives (K, {query.shape[1]}) with K of {least} or more are needed, not {tuple(negatives.shape)}"
        )


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """Raises ValueError if a temperature given as a number is not positive; reading a tensor would wait for it."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the {name} must be positive, not {temperature}")
