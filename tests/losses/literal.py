"""What literal transcriptions of losses are made of: random rows, and cosines and softmax of lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a)) / math.sqrt(dot(b, b))


def softmax(values: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def found(scores: Sequence[tuple[float, list[float]]]) -> dict[str, float]:
    """`contrast_top1` and `contrast_top5` of each row's positive among its others."""
    better = [sum(other >= positive for other in others) for positive, others in scores]
    return {f"contrast_top{k}": sum(count < k for count in better) / len(better) for k in (1, 5)}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
