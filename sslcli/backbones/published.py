"""torchvision's published weights, which it downloads and caches for backbones with `pretrained: true`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor

from sslcli.contracts.backbone import BackboneOptions
from sslcli.contracts.errors import UserError

#: DenseNet's published names have a dot before a layer's number (`norm.1`), its modules do not (`norm1`).
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")


class PublishedOptions(BackboneOptions):
    """Options of a backbone that torchvision has weights for."""

    pretrained: bool = False
    """Start from torchvision's best published weights, which it downloads once. Like `weights`, read only when a run
    starts."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("give weights or pretrained, not both")
        return self


def published_state(name: str) -> dict[str, Tensor]:
    """Returns torchvision's default weights of its model `name`, under its names, with the classifier.

    Raises:
        UserError: if they are neither cached nor can be downloaded, or are damaged.
    """
    from torchvision import models  # takes seconds to import

    weights = models.get_model_weights(name).DEFAULT
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file = cache / weights.url.rpartition("/")[2]
    try:
        state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # network, disk and torch.load raise many types
        reason = " ".join(str(error).split())[:200]
        advice = f"remove {file}" if file.is_file() else f"put {file.name} into {cache}"
        raise UserError(
            f"backbone.pretrained: torchvision's weights of {name} cannot be loaded ({reason}): {advice}, "
            "or set pretrained=false"
        ) from error
    return {_DENSE_LAYER.sub(r"\1\2.", key): value for key, value in state.items()}
