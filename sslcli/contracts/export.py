"""Contract of the group `sslcli.exporters`: a trained backbone → a file that other tools load."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from .backbone import Backbone
from .options import Options

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneCard:
    """What goes along with a backbone's weights, so that the file alone is enough to use it.

    Attributes:
        backbone: name and options, as the config holds them.
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
        head: the projector's first layers where the backbone goes on through them
            (`sslcli.modules.headed.KeptLayersOptions`); `feature_dim` is theirs then.
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


@dataclass
class Trained:
    """A backbone with its weights.

    Attributes:
        backbone: in `eval()`, on the CPU.
        card: what it is.
        run: the run directory it came from; None for a file alone.
        digest: sha256 that covers everything in the file it was read from.
        source: that file, a checkpoint or a backbone file; None where there is none.
        plugin: `package` and `version` of the backbone's class when it was trained; None where that is not known.
    """

    backbone: Backbone
    card: BackboneCard
    run: Path | None
    digest: str = ""
    source: Path | None = None
    plugin: dict[str, str] | None = None


@dataclass
class Exported:
    """Where the file is, and Python lines that load it as they stand."""

    path: Path
    how_to_load: str


class Exporter(ABC):
    """Writes a trained backbone for others.

    Attributes:
        suffix: of the file, with its dot, where the user names none.
        device: where to compute, for exporters that do.
    """

    Options: ClassVar[type[Options]] = Options
    suffix: ClassVar[str] = ".safetensors"

    def __init__(self, options: Any) -> None:
        self.options = options
        self.device = torch.device("cpu")

    def default_suffix(self) -> str:
        """Returns `suffix`, or what the options make of it."""
        return self.suffix

    def outputs(self, path: Path) -> list[Path]:
        """Returns all files that `export` writes for this `path`: what must not be there, unless it may be replaced."""
        return [path]

    def tell(self, text: str) -> None:
        """Shows a line to the user."""
        log.info(text)

    @abstractmethod
    def export(self, trained: Trained, path: Path) -> Exported:
        """Writes `path` whole or not at all."""
