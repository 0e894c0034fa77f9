"""Nearest class mean: an image belongs to the class whose mean training feature is closest.

Mensink et al., *Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost*, TPAMI 2013.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.contracts.options import Options


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns (C, D): the mean feature of each class; NaN for a class without images.

    Args:
        features: (N, D).
        labels: (N,) int64.
        classes: C.
    """
    members = F.one_hot(labels, classes).to(features.dtype)  # N×C
    return members.T @ features / members.sum(dim=0).unsqueeze(1)


class NearestMeanOptions(Options):
    """Options of the nearest class mean."""

    normalize: bool = True
    """Scale features and means to length 1, which makes it the mean with the largest cosine similarity."""


class NearestMean(Evaluator):
    """Classifies by the closest class mean in feature space: nothing is trained and nothing drawn."""

    Options = NearestMeanOptions
    options: NearestMeanOptions
    chooses = False
    seeded = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        """Returns `top1`, and in the details the fraction of correct images per class.

        Raises:
            UserError: the images have no labels.
        """
        train, test = subject.features("train"), subject.features("eval")
        if train.labels is None or test.labels is None or subject.classes is None:
            raise UserError("nearest_mean: the images have no labels; choose data with labels")
        x, y = train.features.double(), test.features.double()  # float64: no TF32
        if self.options.normalize:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        means = class_means(x, train.labels, subject.classes)
        if self.options.normalize:
            means = F.normalize(means, dim=1)
        distance = torch.cdist(y, means).nan_to_num(torch.inf)  # N×C
        correct = distance.argmin(dim=1) == test.labels
        by_class = class_means(correct.double().unsqueeze(1), test.labels, subject.classes).squeeze(1)
        protocol = {
            **subject.describe(), "evaluator": "nearest_mean", "normalize": self.options.normalize,
            "train_images": len(x), "eval_images": len(y),
        }  # fmt: skip
        shares = [None if share != share else share for share in by_class.tolist()]
        return EvaluationResult({"top1": float(correct.double().mean())}, protocol, {"per_class": shares})
