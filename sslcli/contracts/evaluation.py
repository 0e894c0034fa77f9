"""Contract of the group `sslcli.evaluators`: a frozen backbone → metrics, and the protocol behind them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .backbone import Backbone, BackboneSpec
from .data import Dataset, Part
from .options import Options

log = logging.getLogger(__name__)


@dataclass
class FeatureSet:
    """Features (N, D) float32 and labels (N,) int64 or None, on the evaluation's device."""

    features: Tensor
    labels: Tensor | None


class Subject(ABC):
    """The backbone to evaluate, and the data to evaluate it on.

    Attributes:
        backbone: in `eval()` and without gradients; an evaluator leaves it bitwise unchanged.
        device: where features are computed.
        seed: for random numbers of the evaluator.
        classes: number of classes, or None without labels.
        image_size: side in pixels of the backbone's input.
        interpolation: how images of another size are resized for it.
    """

    backbone: Backbone
    device: torch.device
    seed: int
    classes: int | None
    image_size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @abstractmethod
    def features(self, part: Part) -> FeatureSet:
        """Returns the features of all images of the part, computed once and shared: do not change them in place.

        For an evaluator that `chooses`, the part `eval` is sealed until it has called `decide`.
        """

    @abstractmethod
    def dataset(self, part: Part) -> Dataset:
        """Returns the dataset of the part, for protocols that augment; `eval` is sealed like its features."""

    def decide(self, choice: Mapping[str, Any]) -> None:
        """Records what was chosen (a learning rate, a strength) and unseals the part `eval`.

        Call it once all choices are made, on training images alone; `{}` if there was nothing to choose. Once the part
        `eval` was read, another call is an error. The choice is written to the protocol as `decided`.

        Args:
            choice: plain data, under the options' names where they exist.
        """

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Turns uint8 images (N, C, H, W) on the device into the backbone's float input."""

    def describe(self) -> dict[str, Any]:
        """Returns what every protocol contains: data, feature, normalization, …"""
        return {}

    def tell(self, text: str) -> None:
        """Shows a line of progress."""
        log.info(text)


@dataclass
class LinearClassifier:
    """What an evaluator trained, to be kept for `ssl export classifier`: scores = pooled features · weightᵀ + bias.

    Attributes:
        weight: (C, D), in the order of the data's classes.
        bias: (C,).
        backbone: the trained copy of `Subject.backbone`; None if that is as it was.
    """

    weight: Tensor
    bias: Tensor
    backbone: Backbone | None = None


@dataclass
class EvaluationResult:
    """What an evaluator returns.

    Attributes:
        metrics: name → value; accuracies as fractions between 0 and 1 (`top1`, `top5`).
        protocol: everything that the metrics depend on, as plain data.
        details: longer plain data (per class, the sweep), written to the file and not printed. `confusion`, a list of
            rows (C × C; the row is the true class), is also plotted.
        spread: name → standard deviation of the metric over several seeds; set by `ssl eval --seeds`.
        classifier: the one that was tested, if there is one to keep; written beside the result, and None afterward.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    classifier: LinearClassifier | None = None

    def text(self, name: str) -> str:
        """Returns a metric as text: accuracies (`top1`) in percent, and behind ± the standard deviation over seeds; a
        dash if there is none."""
        value, spread = self.metrics.get(name), self.spread.get(name)
        if value is None:
            return "–"
        if name.startswith("top"):
            return f"{value:.2%}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
        return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")

    def _repr_html_(self) -> str:
        return html_table("Evaluation", {name: self.text(name) for name in self.metrics})


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Returns a table with a title and a row for each name, for notebooks; any text is escaped."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    table = f"<table><caption>{escape(title)}</caption>{body}</table>"
    return table.encode(errors="backslashreplace").decode()  # of names that are no UTF-8


@dataclass(frozen=True)
class Published:
    """An evaluation as its authors run it, for the option `protocol=NAME`.

    Attributes:
        source: where the values are from: a file of the authors' code.
        options: values of the evaluator's options as plain data, and of `feature` and `interpolation`, which every
            evaluation has. Those that a user gives win.
    """

    source: str
    options: Mapping[str, Any]


class Evaluator(ABC):
    """Evaluates a frozen backbone.

    Attributes:
        needs_labels: it fits on the labeled part `train` and tests on the part `eval`.
        chooses: it may choose something by measuring, so the part `eval` is sealed until it has called
            `Subject.decide`. False if everything is in its options.
        seeded: its metrics depend on `Subject.seed`; if not, one seed is enough for `--seeds`.
        in_all: `--method all` runs it; False for one that takes many times longer than computing the features.
        protocols: published settings by name; `protocol=NAME` stands for them on the command line, whether or not
            `protocol` is an option of its own.
    """

    Options: ClassVar[type[Options]] = Options
    needs_labels: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    in_all: ClassVar[bool] = True
    protocols: ClassVar[Mapping[str, Published]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, subject: Subject) -> EvaluationResult:
        """Returns metrics and protocol.

        Raises:
            UserError: the data or the backbone does not suit this evaluation (no labels, too few images).
        """

    @classmethod
    def protocol_for(cls, name: str, spec: BackboneSpec) -> str:
        """Returns which of `protocols` the one called `name` is for such a backbone, where its authors' differ."""
        return name
