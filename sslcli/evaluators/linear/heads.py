"""Many linear classifiers trained at once on the same batches of features, each as if it were alone.

Heads that share a scaling of the features are rows of one matrix, so a sweep is one product per batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.evaluation.scores import in_top
from sslcli.randomness import permutation, seed_for
from sslcli.runs.arithmetic import exact_float32

from ..probes.training import Training, draw_weights
from .updates import make_update

log = logging.getLogger(__name__)

#: Scores held at once while heads are measured: 64 MiB.
BLOCK = 1 << 24
_ORDER, _WEIGHTS = 2, 3

#: Endless batches of features (B, D) and labels (B,) on the device.
Batches = Generator[tuple[Tensor, Tensor], None, None]


def cached_batches(features: Tensor, labels: Tensor, rows: Tensor, batch_size: int, seed: int) -> Batches:
    """Yields batches of some rows (M,) of features (N, D) that were computed once, and of their labels (N,), in another
    order each epoch; an epoch's last may be smaller."""
    for epoch in itertools.count():
        order = rows[permutation(seed_for(seed, _ORDER), epoch, len(rows))]
        for batch in torch.split(order.to(features.device), batch_size):
            yield features[batch], labels[batch]


@dataclass
class Heads:
    """S = V·R linear classifiers, V scalings of the features times R learning rates.

    Attributes:
        weight: (V, R, C, D).
        bias: (V, R, C).
        mean: (V, D), taken from the features first.
        scale: (V, D), which then multiplies them.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def scaled(self, features: Tensor) -> Tensor:
        """Returns (V, N, D) for features (N, D)."""
        return (features - self.mean.unsqueeze(1)) * self.scale.unsqueeze(1)

    def logits(self, scaled: Tensor) -> Tensor:
        """Returns (V, N, R, C) for features (V, N, D)."""
        V, R, C, D = self.weight.shape
        return (scaled @ self.weight.view(V, R * C, D).mT).view(V, -1, R, C) + self.bias.unsqueeze(1)

    def scores(self, features: Tensor) -> Tensor:
        """Returns (V, R, N, C) for features (N, D)."""
        return self.logits(self.scaled(features)).transpose(1, 2)

    def only(self, scaling: int, rate: int) -> Heads:
        """Returns one of them, which shares its memory."""
        v, r = slice(scaling, scaling + 1), slice(rate, rate + 1)
        return Heads(self.weight[v, r], self.bias[v, r], self.mean[v], self.scale[v])


def train_heads(
    batches: Batches,
    steps: int,
    scalings: tuple[Tensor, Tensor],
    classes: int,
    rates: Sequence[float],
    training: Training,
    seed: int,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    level: int = logging.DEBUG,
) -> tuple[Heads, Tensor, Tensor | None]:
    """Trains one head for each scaling and rate, all from the same weights and on the same batches.

    The loss is cross-entropy; features are not normalized but by the scalings.

    Args:
        batches: what to train on; closed at the end.
        steps: how many of them are an epoch.
        scalings: mean and scale, (V, D) each, as `standardizations` makes them; their type is the arithmetic's.
        classes: C.
        rates: R learning rates.
        training: the rest.
        seed: of the weights, where they are drawn.
        held_out: features (N, D) and labels (N,) to measure the accuracy on after each epoch.
        level: of the ten log lines, which wait for the device.

    Returns:
        the heads; (epochs, V, R), the mean training loss of each epoch; and (epochs, V, R) float64, the top-1 on the
        held-out features after each epoch, or None without such. A rate that is too high leaves NaN or infinity in its
        own head only.

    Raises:
        UserError: the schedule's options do not fit the number of steps.
    """
    mean, scale = scalings
    (V, D), R = mean.shape, len(rates)
    first = draw_weights((classes, D), training.init, seed_for(seed, _WEIGHTS)).to(mean)
    heads = Heads(first.expand(V, R, classes, D).clone(), mean.new_zeros(V, R, classes), mean, scale)
    parameters = {"weight": heads.weight, "bias": heads.bias}
    gradients = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    update = make_update(parameters, gradients, rates, training, steps)
    losses: list[Tensor] = []
    right: list[Tensor] = []
    device, every = mean.device.type, max(1, training.epochs // 10)
    with torch.no_grad(), exact_float32(), torch.autocast(device, enabled=False), closing(batches):
        for epoch in range(training.epochs):
            total, seen = mean.new_zeros(V, R), 0
            for step in range(epoch * steps, (epoch + 1) * steps):
                features, labels = next(batches)
                total += _write_gradients(heads, features, labels, gradients)
                seen += len(labels)
                update(step)
            losses.append(total / seen)
            if held_out is not None:
                right.append(accuracies(heads, *held_out))
            if log.isEnabledFor(level) and (epoch + 1 == training.epochs or (epoch + 1) % every == 0):
                lowest = float(losses[-1].nan_to_num(torch.inf).min())
                log.log(level, f"linear: epoch {epoch + 1} of {training.epochs}, lowest loss {lowest:.4f}")
    return heads, torch.stack(losses), torch.stack(right) if right else None


def _write_gradients(heads: Heads, features: Tensor, labels: Tensor, gradients: dict[str, Tensor]) -> Tensor:
    """Writes the gradients of the mean loss; returns the losses' sums over the batch, (V, R)."""
    V, R, C, D = heads.weight.shape
    x = heads.scaled(features)
    log_p = F.log_softmax(heads.logits(x), dim=-1)
    own = labels.view(1, -1, 1, 1).expand(V, -1, R, 1)
    sums = -log_p.gather(-1, own).sum(dim=(1, 3))
    error = log_p.exp_().scatter_add_(-1, own, log_p.new_full((), -1.0).expand(own.shape)) / len(labels)
    torch.bmm(error.view(V, -1, R * C).mT, x, out=gradients["weight"].view(V, R * C, D))
    torch.sum(error, dim=1, out=gradients["bias"])
    return sums


def accuracies(heads: Heads, features: Tensor, labels: Tensor) -> Tensor:
    """Returns the top-1 accuracy of each head on features (N, D) with labels (N,), (V, R) float64."""
    right = [in_top(scores, y, 1).sum(dim=-1) for scores, y in _scores(heads, features, labels)]
    return torch.stack(right).sum(dim=0).double() / len(labels)


def mean_losses(heads: Heads, features: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each head on features (N, D) with labels (N,), (V, R) float64; not finite for a head
    that has diverged, whose accuracy means nothing."""
    V, R = heads.weight.shape[:2]
    loss = torch.zeros(V, R, dtype=torch.float64, device=features.device)
    for scores, y in _scores(heads, features, labels):
        log_p = F.log_softmax(scores.double(), dim=-1)
        loss -= log_p.gather(-1, y.view(1, 1, -1, 1).expand(V, R, -1, 1)).sum(dim=(2, 3))
    return loss / len(labels)


def _scores(heads: Heads, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the scores (V, R, n, C) of a block of images, and their labels."""
    rows = max(1, BLOCK // heads.bias.numel())
    for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
        with torch.no_grad(), exact_float32():
            scores = heads.scores(x)
        yield scores, y


def standardizations(features: Tensor, rows: Tensor, kinds: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Returns what to subtract and then what to multiply by, (V, D) each: 0 and 1, or as a batch norm without weights.

    Args:
        features: (N, D).
        rows: (M,) int64 on the device, the images whose mean and variance are taken.
        kinds: V scalings: false for the features as they are, true for mean 0 and standard deviation 1.
    """
    mean = features.new_zeros(len(kinds), features.shape[1])
    scale = torch.ones_like(mean)
    if any(kinds):
        total = mean.new_zeros(features.shape[1], dtype=torch.float64)
        square = torch.zeros_like(total)
        for part in torch.split(rows, 65536):  # all rows at once would be a copy of everything
            total += features[part].double().sum(dim=0)
        center = total / len(rows)
        for part in torch.split(rows, 65536):
            square += (features[part].double() - center).square().sum(dim=0)
        factor = (square / len(rows) + 1e-5).rsqrt()
        chosen = torch.tensor(kinds, device=mean.device)
        mean[chosen], scale[chosen] = center.to(mean.dtype), factor.to(mean.dtype)
    return mean, scale
