"""A trained network that a method learns from: frozen, and given images normalized its own way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import PluginError, UserError
from sslcli.data.normalization import IMAGENET, Statistics
from sslcli.plugins import load
from sslcli.storage import expanded

from .trained import load_trained
from .weights import start_from


class Teacher(nn.Module):
    """A backbone with its weights, in `eval()` and without gradients. A method that has one names it in `frozen`.

    Attributes:
        backbone: the network.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, source: str | Path, data: DataInfo, image_size: int, options: Mapping[str, Any] | None = None
    ) -> None:
        """Args:
        source: a run, a checkpoint or a backbone file; or the name of a backbone (`torchvision/resnet50`,
            `timm/vit_small_patch16_224`) with its published weights.
        data: of the run, whose views are normalized by its mean and std.
        image_size: side of the views in pixels.
        options: of a backbone that is named; `{"weights": FILE}` for weights of another tool.

        Raises:
            UserError: there is no such file or name, its weights cannot be loaded, or it takes other images.
        """
        super().__init__()
        self.backbone, (mean, std) = _load(source, data.channels, image_size, options)
        spec = self.backbone.spec
        if image_size < spec.minimum_size or image_size % spec.size_multiple:
            multiples = f", in multiples of {spec.size_multiple}" if spec.size_multiple > 1 else ""
            raise UserError(
                f"teacher {source}: cannot take images of {image_size} px; it takes {spec.minimum_size} or "
                f"more{multiples}: set views.size or, if the method has it, method.teacher_size"
            )
        self.backbone.requires_grad_(False)
        # (x·std + mean − mean′) / std′: the views as the teacher's own data would be normalized.
        before = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (data.mean, data.std)]
        after = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std)]
        self.register_buffer("scale", (before[1] / after[1]).float())
        self.register_buffer("shift", ((before[0] - after[0]) / after[1]).float())
        self.eval()

    def forward(self, images: Tensor) -> Features:
        """Returns the features of views (N, C, H, W), normalized as the run's, without gradient."""
        with torch.no_grad():
            features: Features = self.backbone(images * self.scale + self.shift)
        return features


def _load(
    source: str | Path, channels: int, image_size: int, options: Mapping[str, Any] | None
) -> tuple[Backbone, Statistics]:
    path, name = expanded(source), str(source)
    if path.exists() or path.suffix == ".safetensors":
        trained = load_trained(path)
        if trained.card.channels != channels:
            raise UserError(
                f"teacher {path}: takes images of {trained.card.channels} channels, and the data has {channels}: "
                "choose a teacher of such images"
            )
        return trained.backbone, (trained.card.mean, trained.card.std)
    try:
        cls: type[Backbone] = load("backbones", name)
    except PluginError as error:
        if os.sep not in name:
            raise
        raise UserError(
            f"teacher {name}: is no run or file here, and no name of a backbone; say where it is now"
        ) from error
    if channels not in IMAGENET:
        raise UserError(f"teacher {name}: published weights take 1 or 3 channels, and the data has {channels}")
    published = "pretrained" in cls.Options.model_fields and "weights" not in (options or {})
    try:
        parsed = cls.Options.parse({**({"pretrained": True} if published else {}), **(options or {})})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"teacher {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not published and getattr(parsed, "weights", None) is None:
        raise UserError(f"teacher {name}: has no published weights: give a file of trained weights instead")
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = cls.build(parsed, channels, image_size)
        start_from(backbone, name, parsed)
    except UserError as error:
        raise UserError(f"teacher {name}, for images of {image_size} px: {error}") from error
    return backbone, IMAGENET[channels]
