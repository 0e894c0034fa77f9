"""Many linear classifiers trained at once on the same batches of cached features, each as if it were alone.

Heads that share a scaling of the features are columns of one matrix, so that a sweep is one product per batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..randomness import permutation, seed_for
from .scores import exact_float32, in_top

#: Scores held at once while heads are judged: 64 MiB.
BLOCK = 1 << 24
_HELD_OUT, _ORDER = 1, 2


@dataclass(frozen=True)
class Recipe:
    """How heads are trained: SGD, the learning rate falling by a cosine from its start at the first step to 0."""

    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float


@dataclass
class Heads:
    """S = V·R linear classifiers, V scalings of the features times R learning rates.

    Attributes:
        weight: (V, D, R, C).
        bias: (V, R, C).
        mean: (V, D), taken from the features first.
        scale: (V, D), which then multiplies them.
        losses: (epochs, V, R), mean training loss of each epoch.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    losses: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Returns (V, R, N, C) for features (N, D)."""
        V, D, R, C = self.weight.shape
        x = (features - self.mean.unsqueeze(1)) * self.scale.unsqueeze(1)
        return (x @ self.weight.reshape(V, D, R * C)).reshape(V, -1, R, C).transpose(1, 2) + self.bias.unsqueeze(2)


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits places at random, the same share of each class; a class with a single image is not split.

    Args:
        labels: (N,) int64.
        share: of the second part, between 0 and 1; at least one image of each class.
        seed: what the choice is drawn from.

    Returns:
        places (M,) and (N − M,) int64, ascending, on the CPU.
    """
    labels = labels.cpu()
    order = permutation(seed_for(seed, _HELD_OUT), 0, len(labels))
    grouped = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    wanted = torch.minimum((sizes * share).round().long().clamp_min(1), sizes - 1)
    held = rank < wanted[labels[grouped]]
    return grouped[~held].sort().values, grouped[held].sort().values


def train_heads(
    features: Tensor,
    labels: Tensor,
    rows: Tensor,
    classes: int,
    rates: Sequence[float],
    standardised: Sequence[bool],
    recipe: Recipe,
    seed: int,
) -> Heads:
    """Trains one head for each scaling and rate, from zero, on the same batches in the same order.

    Args:
        features: (N, D) on the device.
        labels: (N,) int64.
        rows: (M,) int64, the places to train on.
        classes: C.
        rates: R learning rates.
        standardised: V scalings: the features as they are, or to mean 0 and standard deviation 1 over `rows`.
        recipe: the rest.
        seed: of the batches' order.

    Returns:
        the heads; a rate that is too high leaves NaN or infinity in its own head only.
    """
    device, dtype = features.device, features.dtype
    V, D, R, C = len(standardised), features.shape[1], len(rates), classes
    mean, scale = _scalings(features, rows.to(device), standardised)
    weight, bias = features.new_zeros(V, D, R, C), features.new_zeros(V, R, C)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    peak = torch.tensor(rates, device=device, dtype=dtype).reshape(R, 1)
    losses = features.new_zeros(recipe.epochs, V, R)
    steps = math.ceil(len(rows) / recipe.batch_size)
    with torch.no_grad(), exact_float32(), torch.autocast(device.type, enabled=False):
        for epoch in range(recipe.epochs):
            order = rows[permutation(seed_for(seed, _ORDER), epoch, len(rows))].to(device)
            for index, batch in enumerate(torch.split(order, recipe.batch_size)):
                x = (features[batch] - mean.unsqueeze(1)) * scale.unsqueeze(1)  # V×B×D
                y = labels[batch]
                logits = (x @ weight.view(V, D, R * C)).view(V, -1, R, C) + bias.unsqueeze(1)  # V×B×R×C
                log_p = F.log_softmax(logits, dim=-1)
                own = y.view(1, -1, 1, 1).expand(V, -1, R, 1)
                losses[epoch] -= log_p.gather(-1, own).sum(dim=(1, 3)) / len(rows)
                gradient = log_p.exp_().scatter_add_(-1, own, log_p.new_full((), -1.0).expand(own.shape)) / len(y)
                share = (1 + math.cos(math.pi * (epoch * steps + index) / (recipe.epochs * steps))) / 2
                slope = (x.mT @ gradient.view(V, -1, R * C)).view(V, D, R, C)
                velocity.mul_(recipe.momentum).add_(slope).add_(weight, alpha=recipe.weight_decay)
                bias_velocity.mul_(recipe.momentum).add_(gradient.sum(dim=1)).add_(bias, alpha=recipe.weight_decay)
                weight.addcmul_(velocity, peak, value=-share)
                bias.addcmul_(bias_velocity, peak, value=-share)
    return Heads(weight, bias, mean, scale, losses)


def judge_heads(heads: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns top-1 accuracy and mean cross-entropy of each head, (V, R) float64 each; the loss of a head that has
    diverged is not finite, and its accuracy counts for nothing.

    Args:
        heads: S of them.
        features: (N, D).
        labels: (N,) int64.
    """
    V, _, R, C = heads.weight.shape
    right = torch.zeros(V, R, dtype=torch.float64, device=features.device)
    loss = torch.zeros_like(right)
    rows = max(1, BLOCK // (V * R * C))
    with torch.no_grad(), exact_float32():
        for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            scores = heads.scores(x)
            right += in_top(scores, y, 1).sum(dim=-1)
            log_p = F.log_softmax(scores.double(), dim=-1)
            loss -= log_p.gather(-1, y.view(1, 1, -1, 1).expand(V, R, -1, 1)).sum(dim=(2, 3))
    return right / len(labels), loss / len(labels)


def best_head(top1: Tensor, loss: Tensor) -> tuple[int, int] | None:
    """Returns the place (scaling, rate) of the highest accuracy, of equal ones the lowest loss; None if all diverged.

    Args:
        top1: (V, R).
        loss: (V, R); heads where it is not finite are passed over.
    """
    R = top1.shape[1]
    accuracies, losses = top1.flatten().tolist(), loss.flatten().tolist()
    fit = [i for i, value in enumerate(losses) if math.isfinite(value)]
    return divmod(max(fit, key=lambda i: (accuracies[i], -losses[i], -i)), R) if fit else None


def _scalings(features: Tensor, rows: Tensor, standardised: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Mean to take off and factor to multiply with, (V, D) each; as a batch norm without weights has them."""
    mean = features.new_zeros(len(standardised), features.shape[1])
    scale = torch.ones_like(mean)
    if any(standardised):
        total = mean.new_zeros(features.shape[1], dtype=torch.float64)
        square = torch.zeros_like(total)
        for part in torch.split(rows, 65536):  # all rows at once would be a copy of everything
            total += features[part].double().sum(dim=0)
        centre = total / len(rows)
        for part in torch.split(rows, 65536):
            square += (features[part].double() - centre).square().sum(dim=0)
        factor = (square / len(rows) + 1e-5).rsqrt()
        for place, wanted in enumerate(standardised):
            if wanted:
                mean[place], scale[place] = centre.to(mean.dtype), factor.to(mean.dtype)
    return mean, scale
