"""The evaluator `knn`: weighted k nearest neighbors on frozen features, exact, in blocks on the device.

The protocol of Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, 1805.01978,
section 3.4: cosine similarity s, each neighbor votes for its class with weight exp(s / τ).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Published, Subject
from sslcli.contracts.options import Options
from sslcli.evaluation.scores import summarize
from sslcli.evaluation.subject import labeled_features, require_parts
from sslcli.runs.arithmetic import exact_float32

from .probes.training import Counts, Rates

#: Similarities held at once: 256 MiB.
BLOCK = 1 << 26


def nearest(train_features: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k most similar training features by cosine.

    Args:
        train_features: (M, D).
        features: (N, D), on the same device.
        k: at most M are used.

    Returns:
        similarities (N, k) float32, the largest first, and indices (N, k) int64 of the training features.
    """
    k = min(k, len(train_features))
    bank = F.normalize(train_features.float(), dim=1).T
    rows = max(1, BLOCK // len(train_features))
    with exact_float32(), torch.autocast(features.device.type, enabled=False):
        best = [(F.normalize(block.float(), dim=1) @ bank).topk(k, dim=1) for block in torch.split(features, rows)]
    similarity, index = zip(*best, strict=True)
    return torch.cat(similarity), torch.cat(index)


def vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Sums the neighbors' weights exp(s / τ) per class, divided by the nearest one's so that no τ overflows.

    Args:
        similarity: (N, k), the largest first.
        labels: (N, k) int64, the neighbors' classes.
        classes: C.
        temperature: τ > 0.

    Returns:
        (N, C) float64; −inf for a class without a vote, so it is in no top 5 if fewer than five got votes.
    """
    s = similarity.double()
    weight = ((s - s[:, :1]) / temperature).exp()
    votes = torch.zeros(len(s), classes, dtype=torch.float64, device=s.device).scatter_add_(1, labels, weight)
    return votes.masked_fill(votes == 0, -torch.inf)


class KNNOptions(Options):
    k: Counts = (20, 200)
    """How many neighbors vote; the metrics are those of the first value, all are in the details."""
    temperature: Rates = (0.07, 0.1)
    """τ of the weights exp(cosine / τ); the metrics are those of the first value."""
    top: Counts = (1, 5)
    """Which top-k accuracies to report; k from the number of classes on is skipped, since it is always 1."""


#: The first k is the one that DINO's paper reports ("20 is usually working the best").
DINO = Published(
    "facebookresearch/dino, eval_knn.py",
    {"k": [20, 10, 100, 200], "temperature": 0.07, "feature": "pooled", "interpolation": "bicubic"},
)


class KNN(Evaluator):
    """Weighted k nearest neighbors: nothing is trained, so there is nothing to tune."""

    Options = KNNOptions
    options: KNNOptions
    chooses = False
    seeded = False
    protocols = {"dino": DINO}

    def evaluate(self, subject: Subject) -> EvaluationResult:
        classes = require_parts(subject)
        bank, bank_labels = labeled_features(subject, "train")
        features, labels = labeled_features(subject, "eval")
        similarity, index = nearest(bank, features, max(self.options.k))
        names = subject.dataset("eval").info.classes or ()
        settings: list[dict[str, Any]] = []
        details: dict[str, Any] = {}
        for k in self.options.k:
            for temperature in self.options.temperature:
                scores = vote(similarity[:, :k], bank_labels[index[:, :k]], classes, temperature)
                metrics, by_class = summarize(scores, labels, self.options.top, names)
                settings.append({"k": min(k, len(bank)), "temperature": temperature, **metrics})
                details = details or by_class
        first = settings[0]
        protocol = {
            **subject.describe(),
            "evaluator": "knn",
            "similarity": "cosine",
            "weights": "exp(similarity / temperature)",
            "k": first["k"],
            "k_asked_for": self.options.k[0],
            "temperature": first["temperature"],
            "bank_images": len(bank),
            "eval_images": len(features),
        }
        metrics = {name: value for name, value in first.items() if name.startswith("top")}
        return EvaluationResult(metrics, protocol, {"settings": settings, **details})
