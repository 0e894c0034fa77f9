"""Contract of the group `sslcli.evaluators`: a frozen backbone → numbers, with the protocol spelled out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .backbone import Backbone
from .data import Dataset, Part
from .options import Options

log = logging.getLogger(__name__)


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
        """Returns the features of all images of the part, computed once and shared: not to be changed in place.

        Its labels are None where the images have none. `eval` is sealed until `decide` was called, by an evaluator
        that `chooses`.
        """

    @abstractmethod
    def dataset(self, part: Part) -> Dataset:
        """Returns the data set of the part, for protocols that augment; `eval` is sealed as its features are."""

    def decide(self, choice: Mapping[str, Any]) -> None:
        """Says what was chosen (a learning rate, a strength), before the part `eval` can be read.

        To be called once everything that depends on a choice is settled, on training images alone; `{}` says that
        there was nothing to choose this time. After the part `eval` was read there is nothing left to decide, and a
        second call is refused. The choice is written into the protocol as `decided`.

        Args:
            choice: plain data, by the names of the options where they have one.
        """

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Turns uint8 images (N, C, H, W) on the device into what the backbone was trained on."""

    def describe(self) -> dict[str, Any]:
        """Returns the part of the protocol that does not depend on the evaluator: data, feature, normalization, …"""
        return {}

    def tell(self, text: str) -> None:
        """Shows a line of progress."""
        log.info(text)


@dataclass
class EvaluationResult:
    """What an evaluator returns.

    Attributes:
        metrics: name → value; accuracies as shares between 0 and 1 (`top1`, `top5`).
        protocol: everything that decided the numbers, as plain data.
        details: longer plain data (per class, the sweep), written to the file and not printed. `confusion`, a list of
            rows (C × C; the row is the true class), is also drawn as a picture.
        spread: name → standard deviation of the metric over several seeds; filled in by `ssl eval --seeds`.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)


class Evaluator(ABC):
    """Judges a frozen backbone.

    Attributes:
        needs_labels: it fits on the labeled part `train` and judges on the part `eval`.
        chooses: it may settle something by what it measures, so that the part `eval` is sealed until it has called
            `Subject.decide`. False for one that takes everything from its options.
        seeded: its numbers depend on `Subject.seed`; if not, one seed stands for all.
        in_all: `--method all` runs it; False for one that takes many times longer than computing the features.
    """

    Options: ClassVar[type[Options]] = Options
    needs_labels: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    in_all: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, subject: Subject) -> EvaluationResult: ...
