"""Checks of evaluators and exporters, on a small trained backbone and labeled images in memory."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.evaluation.seal import SealedSubject
from sslcli.evaluation.subject import FrozenSubject

from .common import changed, check_options, refusal, require, snapshot
from .stand_ins import MemoryDataset, small_trained


def check_evaluator(cls: type[Evaluator], options: Mapping[str, Any] | None = None, *, count: int = 64) -> None:
    """Checks that an evaluator leaves the backbone and the shared features alone, breaks no seal, repeats, says what it
    did, and refuses data without labels.

    Args:
        cls: the class.
        options: plain data; few epochs make it fast.
        count: images in each part, four classes.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label, trained = check_options(cls, options), cls.__name__, small_trained()
    subject = _subject(trained, count)
    before = snapshot(subject.backbone)
    try:
        result = cls(parsed).evaluate(_sealed(cls, subject))
    except UserError as error:
        raise AssertionError(f"{label} fails on labeled images of four classes: {error}") from error
    except SslError as error:  # it broke the seal
        raise AssertionError(f"{label}: {error}") from error
    require(isinstance(result, EvaluationResult), f"{label}.evaluate must return an EvaluationResult")
    lost = changed(before, snapshot(subject.backbone))
    require(not lost, f"{label} changes the backbone that it judges: {lost[:1]}")
    moving = any(module.training for module in subject.backbone.modules())
    require(not moving, f"{label} leaves the backbone in training mode")
    try:
        subject.check_unchanged(label)
    except SslError as error:
        raise AssertionError(str(error)) from error
    _check_result(label, result)
    again = cls(parsed).evaluate(_sealed(cls, _subject(trained, count)))
    require(again.metrics == result.metrics, f"{label}: two runs with one seed: {result.metrics}, {again.metrics}")
    if not cls.seeded:
        other = cls(parsed).evaluate(_sealed(cls, _subject(trained, count), seed=1))
        require(other.metrics == result.metrics, f"{label} says that it is not seeded, and another seed changes it")
    if cls.needs_labels:
        bare = _sealed(cls, _subject(trained, count, labels=False))
        require(
            refusal(lambda: cls(parsed).evaluate(bare)) is not None,
            f"{label} needs labels, and must refuse data without any with a UserError of one line",
        )


def _subject(trained: Trained, count: int, labels: bool = True) -> FrozenSubject:
    parts = [MemoryDataset(split, count, labels=labels) for split in ("train", "test")]
    return FrozenSubject(trained, parts[0], parts[1], torch.device("cpu"), seed=0)


def _sealed(cls: type[Evaluator], subject: FrozenSubject, seed: int = 0) -> SealedSubject:
    return SealedSubject(subject, cls.__name__, seed=seed, chooses=cls.chooses, needs_labels=cls.needs_labels)


def _check_result(label: str, result: EvaluationResult) -> None:
    require(bool(result.metrics), f"{label} returns no metrics")
    for name, value in result.metrics.items():
        require(isinstance(value, int | float) and math.isfinite(value), f"{label}: the metric {name!r} is {value!r}")
        if name.startswith("top"):
            require(0 <= value <= 1, f"{label}: {name!r} is {value}; accuracies are shares between 0 and 1")
    require(bool(result.protocol), f"{label} does not say how its numbers came about: the protocol is empty")
    for name, content in (("protocol", result.protocol), ("details", result.details)):
        try:
            json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{label}: {name} must be plain data that JSON can hold: {error}") from error


def check_exporter(
    cls: type[Exporter], options: Mapping[str, Any] | None = None, *, trained: Trained | None = None, load: bool = True
) -> None:
    """Checks that an exporter writes what its own lines load, whole or not at all, and leaves the backbone alone.

    Args:
        cls: the class.
        options: plain data.
        trained: what to export; a narrow ResNet-18 by default.
        load: run the lines that `how_to_load` gives; where they define a module `model`, compare its features (the
            first thing that it returns).

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label = check_options(cls, options), cls.__name__
    trained = trained or small_trained()
    suffix = cls.suffix
    require(suffix.startswith(".") and len(suffix) > 1, f"{label}.suffix must begin with a dot, not be {suffix!r}")
    before = snapshot(trained.backbone)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a model{suffix}"
        exported = cls(parsed).export(trained, path)
        require(isinstance(exported, Exported), f"{label}.export must return an Exported")
        require(exported.path.is_file(), f"{label} says it wrote {exported.path.name}, and there is no such file")
        if load:
            _check_loading(label, trained, exported)
        nowhere = Path(folder) / "missing" / path.name
        require(
            refusal(lambda: cls(parsed).export(trained, nowhere)) is not None,
            f"{label}: into a folder that does not exist it must raise a UserError of one line",
        )
        require(not nowhere.exists(), f"{label} leaves a part of a file behind where it fails")
    lost = changed(before, snapshot(trained.backbone))
    require(not lost, f"{label} changes the backbone that it exports: {lost[:1]}")
    require(not trained.backbone.training, f"{label} leaves the backbone in training mode")


def _check_loading(label: str, trained: Trained, exported: Exported) -> None:
    names: dict[str, Any] = {}
    try:
        exec(compile(exported.how_to_load, "how_to_load", "exec"), names)
    except Exception as error:
        raise AssertionError(f"{label}: the lines of how_to_load fail: {type(error).__name__}: {error}") from error
    model = names.get("model")
    if not isinstance(model, nn.Module):
        return
    images = torch.randn(2, trained.card.channels, trained.card.image_size, trained.card.image_size)
    with contextlib.suppress(NotImplementedError):  # a program of torch.export has one mode
        model.eval()
    with torch.no_grad():
        found = model(images)
        found = found[0] if isinstance(found, tuple) else getattr(found, "pooled", found)
        wanted = trained.backbone(images).pooled
    close = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    require(close, f"{label}: what how_to_load loads gives other features")
