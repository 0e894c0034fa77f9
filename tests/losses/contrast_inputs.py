"""Embeddings that the tests of `sslcli.losses.contrast` compare, and the three sources of negatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslcli.losses import Contrast, batch_contrast, queue_contrast


def embeddings(n: int = 4, k: int = 7, dim: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """N queries, their keys, N keys of the queries' own view, and K others."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3 * n + k, dim, generator=generator, dtype=torch.float64).to(dtype)
    return z[:n], z[n : 2 * n], z[2 * n : 3 * n], z[3 * n :]


def contrast(source: str, z: tuple[Tensor, ...], temperature: float = 0.3, *, unit_sphere: bool = True) -> Contrast:
    query, key, own, queue = z
    if source == "queue":
        return queue_contrast(query, key, queue, temperature, unit_sphere=unit_sphere)
    others = own if source == "all" else None
    return batch_contrast(query, key, others, temperature, unit_sphere=unit_sphere)


SOURCES = pytest.mark.parametrize("source", ["queue", "all", "other_view"])
SPHERE = pytest.mark.parametrize("unit_sphere", [True, False])
