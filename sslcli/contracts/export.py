"""Contract of the group `sslcli.exporters`: a trained backbone → a file that other tools load."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .backbone import Backbone
from .options import Options

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneCard:
    """The description stored with a backbone's weights, so that the file alone is enough to use it.

    Attributes:
        backbone: name and options, as in the config.
        channels: image channels.
        image_size: side in pixels of the (largest) training views.
        feature_dim: D.
        mean: normalization used in training, per channel, for images in [0, 1].
        std: likewise.
        method: the method's name.
        dataset: the training data's name.
        step: optimizer steps done.
        epoch: epochs done.
        sslcli: version that trained it.
        head: the projector's first layers if they are part of the backbone
            (`sslcli.modules.headed.KeptLayersOptions`); `feature_dim` is then theirs.
    """

    backbone: dict[str, Any]
    channels: int
    image_size: int
    feature_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    dataset: str
    step: int
    epoch: float
    sslcli: str
    head: dict[str, Any] | None = None


@dataclass(frozen=True)
class Classifier:
    """A linear layer on a backbone's pooled features: scores = features · weightᵀ + bias.

    Attributes:
        weight: (C, D) float32 on the CPU.
        bias: (C,) float32 on the CPU.
        classes: C names.
        evaluator: what trained it.
        feature: which output of the network its features are.
        interpolation: how images of another size were resized for it.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    evaluator: str
    feature: str = "pooled"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass
class Trained:
    """A backbone with its weights.

    Attributes:
        backbone: in `eval()`, on the CPU.
        card: its description.
        run: the run directory it came from; None for a file alone.
        digest: sha256 of everything in the file it was read from.
        source: that file, a checkpoint or a backbone file, or None.
        plugin: `package` and `version` of the backbone's class when it was trained; None if unknown.
        classifier: what an evaluation trained on it, for exporters that need one; `backbone` is then what it was
            trained on: fine-tuned perhaps, and with `feature` as its pooled output.
    """

    backbone: Backbone
    card: BackboneCard
    run: Path | None
    digest: str = ""
    source: Path | None = None
    plugin: dict[str, str] | None = None
    classifier: Classifier | None = None


@dataclass
class Exported:
    """The file, and complete Python lines that load it."""

    path: Path
    how_to_load: str


class Exporter(ABC):
    """Writes a trained backbone for other tools.

    Attributes:
        suffix: file suffix with its dot, used if the user names no file.
        needs_classifier: it exports what `ssl eval` trained (`Trained.classifier`), and is given a result.
        shared: several processes share its work (`--devices N`), see `assist`; others run on one.
        device: where to compute, for exporters that do; set by the caller.
    """

    Options: ClassVar[type[Options]] = Options
    suffix: ClassVar[str] = ".safetensors"
    needs_classifier: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options
        self.device = torch.device("cpu")

    def default_suffix(self) -> str:
        """Returns the suffix for these options; by default `suffix`."""
        return self.suffix

    def outputs(self, path: Path) -> list[Path]:
        """Returns all files that `export` writes for this `path`; existing ones are an error without `--force`."""
        return [path]

    def tell(self, text: str) -> None:
        """Shows a line to the user."""
        log.info(text)

    @abstractmethod
    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` completely or not at all.

        Args:
            trained: the backbone in `eval()` on the CPU, with its card.
            path: the file to write; it does not exist, or may be replaced.

        Raises:
            UserError: the file cannot be written, or this backbone cannot be exported.
        """

    def assist(self, trained: Trained) -> None:
        """What the other processes do while the main one exports, for exporters that are `shared`: called when that
        gives the word with `sslcli.distributed.order`."""
