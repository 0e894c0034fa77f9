"""Weights that torchvision publishes, for backbones that ask to start from them; fetched and kept by torchvision."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor
from torchvision import models

from sslcli.contracts.backbone import BackboneOptions
from sslcli.contracts.errors import UserError

#: DenseNet's published names put a dot before the number of a layer, where its modules have none.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")


class PublishedOptions(BackboneOptions):
    """Options of a backbone that torchvision has weights for."""

    pretrained: bool = False
    """Start from torchvision's best published weights, which it downloads once. Read when a run starts, as `weights`
    are."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("a backbone starts from `weights` or from `pretrained` ones, not from both")
        return self


def published_state(name: str) -> dict[str, Tensor]:
    """Returns the weights that torchvision has as a model's default ones, under its names, with the classifier.

    Args:
        name: torchvision's name of the model.

    Raises:
        UserError: if they can be neither found nor fetched, or are damaged.
    """
    weights = models.get_model_weights(name).DEFAULT
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file = cache / weights.url.rpartition("/")[2]
    try:
        state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # whatever the network, the disk or the reader says
        reason = " ".join(str(error).split())[:200]
        todo = f"remove {file}" if file.is_file() else f"put {file.name} into {cache}"
        raise UserError(
            f"backbone.pretrained: torchvision's weights of {name} cannot be had ({reason}): {todo}, or start without"
        ) from error
    return {_DENSE_LAYER.sub(r"\1\2.", key): value for key, value in state.items()}
