"""Checks of evaluators, on a small trained backbone and labeled images in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from sslcli.config.document import Document
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.errors import SslError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator
from sslcli.evaluation.seal import SealedSubject
from sslcli.evaluation.selection import Chosen
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluation.targets import ShownOptions

from .common import check_options, refusal, reported, require, require_same, snapshot
from .stand_ins import MemoryDataset, small_trained


def check_evaluator(cls: type[Evaluator], options: Mapping[str, Any] | None = None, *, count: int = 64) -> None:
    """Checks that an evaluator changes neither the backbone nor the shared features, breaks no seal, repeats its
    numbers, states its protocol, has valid published settings, and rejects data without labels.

    Args:
        options: plain data; few epochs make it fast.
        count: images in each part, four classes.

    Raises:
        AssertionError: with what is wrong.
    """
    parsed, label, trained = check_options(cls, options), cls.__name__, small_trained()

    def subject(labels: bool = True) -> FrozenSubject:
        parts = [MemoryDataset(split, count, labels=labels) for split in ("train", "test")]
        return FrozenSubject(trained, parts[0], parts[1], torch.device("cpu"), seed=0)

    def evaluate(on: FrozenSubject, seed: int = 0) -> EvaluationResult:
        sealed = SealedSubject(on, label, seed=seed, chooses=cls.chooses, needs_labels=cls.needs_labels)
        return cls(parsed).evaluate(sealed)

    first = subject()
    before = snapshot(first.backbone)
    with reported(f"{label} fails on labeled images of four classes", SslError):
        result = evaluate(first)
    require(isinstance(result, EvaluationResult), f"{label}.evaluate must return an EvaluationResult")
    require_same(before, snapshot(first.backbone), f"{label} changes the backbone that it evaluates: {{}}")
    moving = any(module.training for module in first.backbone.modules())
    require(not moving, f"{label} leaves the backbone in training mode")
    with reported("shared features", SslError):
        first.check_unchanged(label)
    _check_result(label, result)
    _check_protocols(label, cls)
    again = evaluate(subject())
    require(again.metrics == result.metrics, f"{label}: two runs with one seed: {result.metrics}, {again.metrics}")
    if not cls.seeded:
        other = evaluate(subject(), seed=1)
        require(other.metrics == result.metrics, f"{label} has seeded = False, but another seed changes its metrics")
    if cls.needs_labels:
        said = refusal(lambda: evaluate(subject(labels=False)))
        require(said, f"{label} needs labels, and must reject data without any with a UserError of one line")


def _check_protocols(label: str, cls: type[Evaluator]) -> None:
    for name, published in cls.protocols.items():
        require(published.source, f"{label}: the protocol {name!r} does not say where its values are from")
        chosen = Chosen(label, cls, {"protocol": name}, Document({}, {(): "command line"}))
        for spec in (None, BackboneSpec(2048), BackboneSpec(384, patch_size=16), BackboneSpec(768, patch_size=16)):
            with reported(f"{label}: the protocol {name!r} cannot be used", (KeyError, ValueError, SslError)):
                ShownOptions.parse(chosen.build(spec).shown)


def _check_result(label: str, result: EvaluationResult) -> None:
    require(result.metrics, f"{label} returns no metrics")
    for name, value in result.metrics.items():
        require(isinstance(value, int | float) and math.isfinite(value), f"{label}: the metric {name!r} is {value!r}")
        if name.startswith("top"):
            require(0 <= value <= 1, f"{label}: {name!r} is {value}; accuracies are fractions between 0 and 1")
    require(result.protocol, f"{label} does not state how its metrics were computed: the protocol is empty")
    for name, content in (("protocol", result.protocol), ("details", result.details)):
        with reported(f"{label}: {name} must be plain data that JSON can hold", (TypeError, ValueError)):
            json.dumps(content, allow_nan=False)
