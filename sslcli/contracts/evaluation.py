"""Contract of the group `sslcli.evaluators`: a frozen backbone → numbers, with the protocol spelled out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .backbone import Backbone
from .data import Dataset, Part
from .options import Options


@dataclass
class FeatureSet:
    """Features (N, D) float32 and labels (N,) int64, on the evaluation's device; labels None where there are none."""

    features: Tensor
    labels: Tensor | None


class Subject(ABC):
    """What is being evaluated, and the data to do it with.

    Attributes:
        backbone: in `eval()` and without gradients; an evaluator leaves it unchanged to the bit.
        device: where features are computed.
        seed: for whatever an evaluator draws.
        classes: number of classes, or None without labels.
        image_size: side in pixels of the images that the backbone is shown.
    """

    backbone: Backbone
    device: torch.device
    seed: int
    classes: int | None
    image_size: int

    @abstractmethod
    def features(self, part: Part) -> FeatureSet:
        """Returns the features of all images of the part, computed once and kept. Raises UserError without labels."""

    @abstractmethod
    def dataset(self, part: Part) -> Dataset:
        """Returns the data set of the part, for protocols that augment."""

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """Turns uint8 images (N, C, H, W) on the device into what the backbone was trained on."""

    def describe(self) -> dict[str, Any]:
        """Returns the part of the protocol that does not depend on the evaluator: data, feature, normalisation, …"""
        return {}

    @abstractmethod
    def tell(self, text: str) -> None:
        """Shows a line of progress."""


@dataclass
class EvaluationResult:
    """What an evaluator returns.

    Attributes:
        metrics: name → value; accuracies as shares between 0 and 1 (`top1`, `top5`).
        protocol: everything that decided the numbers, as plain data.
        details: longer plain data (per class, the sweep), written to the file and not printed.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)


class Evaluator(ABC):
    """Judges a frozen backbone."""

    Options: ClassVar[type[Options]] = Options
    needs_labels: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, subject: Subject) -> EvaluationResult: ...
