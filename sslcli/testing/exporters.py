"""Checks of exporters, on a small trained backbone."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslcli.contracts.export import Classifier, Exported, Exporter, Trained

from .common import check_options, refusal, reported, require, require_same, snapshot
from .stand_ins import small_trained


def check_exporter(
    cls: type[Exporter], options: Mapping[str, Any] | None = None, *, trained: Trained | None = None, load: bool = True
) -> None:
    """Checks that an exporter writes completely or not at all, that its own lines load the file, and that it does not
    change the backbone.

    Args:
        options: plain data.
        trained: what to export; a narrow ResNet-18 by default.
        load: run the lines of `how_to_load`; if they define a module `model`, compare its features (the first thing
            that it returns).

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label, suffix = check_options(cls, options), cls.__name__, cls.suffix
    trained = trained or small_trained()
    if cls.needs_classifier and trained.classifier is None:
        weight = torch.randn(3, trained.backbone.spec.feature_dim)
        trained = dataclasses.replace(trained, classifier=Classifier(weight, torch.randn(3), ("a", "b", "c"), "linear"))
    require(suffix.startswith(".") and len(suffix) > 1, f"{label}.suffix must begin with a dot, not be {suffix!r}")
    before = snapshot(trained.backbone)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a model{suffix}"
        exported = cls(parsed).export(trained, path)
        require(isinstance(exported, Exported), f"{label}.export must return an Exported")
        require(exported.path.is_file(), f"{label} reports {exported.path.name}, but there is no such file")
        if load:
            _check_loading(label, trained, exported)
        nowhere = Path(folder) / "missing" / path.name
        said = refusal(lambda: cls(parsed).export(trained, nowhere))
        require(said, f"{label}: for a folder that does not exist it must raise a UserError of one line")
        require(not nowhere.exists(), f"{label} leaves a partial file when it fails")
    require_same(before, snapshot(trained.backbone), f"{label} changes the backbone that it exports: {{}}")
    require(not trained.backbone.training, f"{label} leaves the backbone in training mode")


def _check_loading(label: str, trained: Trained, exported: Exported) -> None:
    names: dict[str, Any] = {}
    with reported(f"{label}: the lines of how_to_load fail"):
        exec(compile(exported.how_to_load, "how_to_load", "exec"), names)
    model = names.get("model")
    if not isinstance(model, nn.Module):
        return
    images = torch.randn(2, trained.card.channels, trained.card.image_size, trained.card.image_size)
    with contextlib.suppress(NotImplementedError):  # a program of torch.export has one mode
        model.eval()
    with torch.no_grad():
        found = model(images)
        found = found[0] if isinstance(found, tuple) else getattr(found, "pooled", found)
        expected = trained.backbone(images).pooled
    close = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    require(close, f"{label}: the model that how_to_load loads gives other features")
