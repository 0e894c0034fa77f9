"""Small trained backbones, and lines that are run as a user would: in a namespace of their own, somewhere else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import TinyBackbone
from torch import Tensor

from sslcli.contracts.export import BackboneCard, Exported, Exporter, Trained
from sslcli.plugins import load

#: Name, options and image size of backbones that are quick to export.
BACKBONES: list[tuple[str, dict[str, Any], int]] = [
    ("resnet18", {"stem": "small", "width": 8}, 16),
    ("vit_tiny", {"patch_size": 4, "depth": 2}, 16),
    ("ws_resnet18", {"stem": "small", "width": 8, "norm_groups": 4}, 16),
    ("cifar_resnet20", {"width": 4}, 16),
]


def trained(
    name: str = "resnet18", options: dict[str, Any] | None = None, size: int = 16, channels: int = 3
) -> Trained:
    """A backbone whose norms have statistics of their own, with a card of uneven mean and std."""
    options = {"stem": "small", "width": 8} if options is None and name == "resnet18" else options or {}
    cls = load("backbones", name)
    torch.manual_seed(0)
    backbone = cls.build(cls.Options.parse(options), channels, size).train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        backbone(torch.randn(8, channels, size, size))
    card = BackboneCard(
        {"name": name, **options}, channels, size, backbone.spec.feature_dim, (0.4, 0.5, 0.6)[:channels],
        (0.2, 0.25, 0.3)[:channels], "simclr", "shapes", 7, 0.5, "0.1.0",
    )  # fmt: skip
    return Trained(backbone.eval(), card, None, "0" * 64)


def simple() -> Trained:
    """A backbone of one convolution and one norm, which torch traces in a moment, with the same card."""
    it, backbone = trained("cifar_resnet20", {"width": 4}), TinyBackbone()
    card = dataclasses.replace(it.card, feature_dim=backbone.spec.feature_dim)
    return dataclasses.replace(it, backbone=backbone.eval(), card=card)


def export(cls: type[Exporter], it: Trained, path: Path, **options: Any) -> Exported:
    return cls(cls.Options.parse(options)).export(it, path)


def pasted(lines: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs lines in another directory; returns the names that they define."""
    assert lines == lines.strip()
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.chdir(elsewhere)
    names: dict[str, Any] = {}
    exec(compile(lines, "how_to_load", "exec"), names)
    return names


def features_of(model: Any, images: Tensor) -> Tensor:
    """Features of whatever the lines call `model`: a module of ours or of others, a program, a function of arrays."""
    if not isinstance(model, torch.nn.Module):
        return torch.from_numpy(np.asarray(model(images.numpy())))
    if not isinstance(model, torch.fx.GraphModule):  # a program has one mode
        model.eval()
    with torch.no_grad():
        found = model(images)
    return getattr(found, "pooled", found)


def expected(it: Trained, images: Tensor) -> Tensor:
    with torch.no_grad():
        return it.backbone(images).pooled


def scaled(it: Trained, images: Tensor) -> Tensor:
    """Images in [0, 1] → normalized."""
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (it.card.mean, it.card.std))
    return (images - mean) / std


def of_plugin(it: Trained, package: str, version: str) -> Trained:
    return dataclasses.replace(it, plugin={"package": package, "version": version})
