"""Where a linear probe's features come from: computed once from each image as it is, or anew from augmented views.

The second is the classic protocol of the papers (random crops and flips, a frozen backbone in `eval()`); it shows the
classifier other pixels each epoch and costs a pass through the backbone for each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.evaluation import Subject
from sslcli.data.subset import Subset
from sslcli.evaluation.extraction import autocast, extract_features
from sslcli.evaluation.subject import labeled_features
from sslcli.randomness import seed_for
from sslcli.runs.device import memory_format, resolve_precision

from ..probes.images import ImageOptions, ViewBatches
from .heads import Batches, cached_batches, standardizations

_VIEWS = 4


class CachedFeatures:
    """Features that are computed once, each image as it is.

    Attributes:
        labels: (N,) int64 of all training images.
    """

    def __init__(self, subject: Subject) -> None:
        self.features, self.labels = labeled_features(subject, "train")

    def batches(self, rows: Tensor, batch_size: int, seed: int) -> tuple[Batches, int]:
        """Returns batches of the features of some images (rows (M,), on the CPU), and how many are an epoch."""
        return cached_batches(self.features, self.labels, rows, batch_size, seed), math.ceil(len(rows) / batch_size)

    def plain(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (M, D) and labels (M,) of some images as they are, on the device."""
        rows = rows.to(self.features.device)
        return self.features[rows], self.labels[rows]

    def scalings(self, rows: Tensor, kinds: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Returns mean and scale, (V, D) each, for the features of some images as they are; see `standardizations`."""
        return standardizations(self.features, rows.to(self.features.device), kinds)

    def describe(self) -> dict[str, Any]:
        """Returns what the protocol says of it."""
        return {"protocol": "features", "train_view": "each image once, as in the evaluation"}


class AugmentedFeatures:
    """Features of a fresh view of each image in each epoch, with the methods of `CachedFeatures`; the backbone stays in
    `eval()`."""

    def __init__(self, subject: Subject, options: ImageOptions) -> None:
        self.subject, self.options = subject, options
        self.data = subject.dataset("train")
        assert self.data.labels is not None
        self.labels = self.data.labels
        self.precision = resolve_precision(options.precision, subject.device)

    def batches(self, rows: Tensor, batch_size: int, seed: int) -> tuple[Batches, int]:
        data = Subset(self.data, rows)
        views = ViewBatches(self.subject, data, self.options, batch_size, seed_for(seed, _VIEWS))
        self.view = views.view
        return self._features(views), views.steps_per_epoch

    def _features(self, views: ViewBatches) -> Batches:
        # A copy, since convolutions are fastest in a format that the subject's own weights do not have.
        layout = memory_format(self.subject.backbone, self.subject.device)
        backbone = copy.deepcopy(self.subject.backbone).to(memory_format=layout)
        with closing(iter(views)) as stream:
            for images, labels in stream:
                images = images.contiguous(memory_format=layout)
                with torch.no_grad(), autocast(self.subject.device, self.precision):
                    pooled = backbone(images).pooled
                yield pooled.float(), labels

    def plain(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = extract_features(self.subject.backbone, Subset(self.data, rows), self.subject)
        assert found.labels is not None
        return found.features, found.labels

    def scalings(self, rows: Tensor, kinds: Sequence[bool]) -> tuple[Tensor, Tensor]:
        if any(kinds):
            features, _ = self.plain(rows)
            return standardizations(features, torch.arange(len(features), device=features.device), kinds)
        mean = torch.zeros(len(kinds), self.subject.backbone.spec.feature_dim, device=self.subject.device)
        return mean, torch.ones_like(mean)

    def describe(self) -> dict[str, Any]:
        return {
            "protocol": "augmented",
            "train_view": self.view,
            "train_precision": self.precision,
            "standardized_by": "the training images as they are",
        }
