"""Scores per class → accuracies, counted image by image, and the arithmetic that they are computed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def exact_float32() -> Iterator[None]:
    """Makes float32 matrix products float32 on a GPU too: TF32's 10 bits would reorder neighbors."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 brought a setting of its own for each backend; its older, global one fails where both were used.
    setting, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, setting)
    setattr(matmul, setting, exact)
    try:
        yield
    finally:
        setattr(matmul, setting, before)


def in_top(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Tells whether the label is among the k best classes; of equal scores the class with the lower number is better.

    A class with the score −inf is in no top, and nothing is right in a row with a NaN.

    Args:
        scores: (..., N, C).
        labels: (N,) int64.
        k: at least 1.

    Returns:
        (..., N) bool.
    """
    label = labels.expand(scores.shape[:-1]).unsqueeze(-1)
    own = scores.gather(-1, label)
    classes = torch.arange(scores.shape[-1], device=scores.device)
    better = (scores > own) | ((scores == own) & (classes < label))
    possible = (own.squeeze(-1) > -torch.inf) & ~scores.isnan().any(dim=-1)
    return (better.sum(dim=-1) < k) & possible


def accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Returns the share of images, between 0 and 1, whose label is among the k best classes; waits for the device."""
    return float(in_top(scores, labels, k).double().mean())


def confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns (C, C) int64: how many images of the row's class were predicted as the column's."""
    classes = scores.shape[-1]
    pairs = labels * classes + scores.argmax(dim=-1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: Tensor) -> list[float | None]:
    """Returns the share of each class's images that were recognized; None for a class without images."""
    right, count = matrix.diagonal().tolist(), matrix.sum(dim=1).tolist()
    return [r / n if n else None for r, n in zip(right, count, strict=True)]


def summarize(
    scores: Tensor, labels: Tensor, top: Sequence[int], names: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Turns scores into metrics and details.

    Args:
        scores: (N, C).
        labels: (N,) int64.
        top: which k; those from C on are left out.
        names: of the classes.

    Returns:
        `top1`, `top5`, … as shares, counted image by image; and accuracy by class and the confusion matrix.
    """
    classes = scores.shape[1]
    kept = [k for k in dict.fromkeys(top) if k < classes] or [1]
    matrix = confusion(scores, labels)
    details = {"per_class": dict(zip(names, per_class(matrix), strict=True)), "confusion": matrix.tolist()}
    return {f"top{k}": accuracy(scores, labels, k) for k in kept}, details
