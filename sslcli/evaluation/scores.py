"""Scores per class → accuracies, counted image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
    """Returns the fraction of images, 0 to 1, whose label is among the k best classes; waits for the device."""
    return float(in_top(scores, labels, k).double().mean())


def possible_tops(top: Sequence[int], classes: int) -> list[int]:
    """Returns each k once without those from the number of classes on, which are always right; at least top 1."""
    return [k for k in dict.fromkeys(top) if k < classes] or [1]


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
        `top1`, `top5`, … as fractions over all images; and `per_class`, the accuracy of each class (None without
        images), and `confusion`, how many images of the row's class were predicted as the column's.
    """
    classes = scores.shape[1]
    pairs = labels * classes + scores.argmax(dim=1)
    matrix = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()
    recognized = [row[index] / sum(row) if any(row) else None for index, row in enumerate(matrix)]
    details = {"per_class": dict(zip(names, recognized, strict=True)), "confusion": matrix}
    return {f"top{k}": accuracy(scores, labels, k) for k in possible_tops(top, classes)}, details
