"""The classifiers that evaluations train: kept beside their results, and loaded with their backbone.

A file has a linear layer, and the network if no run has it: a fine-tuned one, or one that is not from a run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import LinearClassifier
from sslcli.contracts.export import Classifier, Trained
from sslcli.runs import files
from sslcli.runs.backbone_file import backbone_plugin, build_backbone, describe, import_checked, read_card, read_plugin
from sslcli.runs.checkpoint import understood
from sslcli.runs.directory import RunDirectory
from sslcli.runs.layout import EVALUATIONS, RUNS, list_checkpoints
from sslcli.runs.overview import newest_first
from sslcli.runs.trained import load_trained
from sslcli.shell import path_word
from sslcli.storage import expanded, read_regular, writing

from .feature import FeatureBackbone
from .seal import state_digest
from .subject import FrozenSubject

log = logging.getLogger(__name__)

KIND = "classifier"
WEIGHT, BIAS = "classifier.weight", "classifier.bias"
#: What trains one, for messages.
ADVICE = "`ssl eval RUN --method linear` trains one"


def with_classifier(trained: Trained, found: LinearClassifier, subject: FrozenSubject, method: str) -> Trained:
    """Returns what was evaluated with what that trained.

    Args:
        trained: the network.
        found: the evaluator's.
        subject: what it was trained on.
        method: the evaluator's name.
    """
    info = subject.dataset("train").info
    weight, bias = (each.detach().float().cpu() for each in (found.weight, found.bias))
    names = info.classes or tuple(str(index) for index in range(len(bias)))
    classifier = Classifier(weight, bias, tuple(names), method, subject.feature, subject.interpolation)
    return dataclasses.replace(trained, backbone=found.backbone or trained.backbone, classifier=classifier)


def save_classifier(path: Path, trained: Trained, made_on: dict[str, str] | None = None) -> str:
    """Writes a classifier.

    Args:
        path: the file.
        trained: has a classifier.
        made_on: digests of the file and of the weights of the network, by which it is found again in its run; None: the
            network is written too.

    Returns:
        the digest of what was written.

    Raises:
        UserError: it cannot be written, or its numbers are not finite.
    """
    classifier = trained.classifier
    assert classifier is not None
    network = trained.backbone.backbone if isinstance(trained.backbone, FeatureBackbone) else trained.backbone
    state = network.export_state()[0] if made_on is None else {}
    if not all(bool(torch.isfinite(each).all()) for each in (classifier.weight, classifier.bias)):
        raise UserError(f"{path}: the classifier is not written: its weights are not all finite")
    try:
        tensors = files.snapshot({**state, WEIGHT: classifier.weight, BIAS: classifier.bias})
    except ValueError as error:
        raise UserError(f"{path}: the classifier is not written: {error}") from error
    plugin = trained.plugin or backbone_plugin(trained.card)
    about = {name: value for name, value in vars(classifier).items() if name not in ("weight", "bias")}
    document = {"kind": KIND, "card": dataclasses.asdict(trained.card), "plugin": plugin, "classifier": about}
    plain = describe(trained.card, plugin) | describe_classifier(classifier)
    with writing(path, "; choose another path"):
        files.write(path, tensors, {**document, "made_on": made_on}, plain)
    return files.read_digest(path)


def describe_classifier(classifier: Classifier) -> dict[str, str]:
    """Returns plain strings for a file's header; the classes are a JSON list."""
    about = {name: getattr(classifier, name) for name in ("evaluator", "feature", "interpolation")}
    return {**about, "classes": json.dumps(classifier.classes)}


def load_classifier(target: Path) -> Trained:
    """Loads a classifier with its network, on the CPU, in `eval()`.

    Args:
        target: a result (`RUN/eval/linear.json`), a run (its newest result that has a classifier), or a file that
            `save_classifier` wrote.

    Raises:
        UserError: there is none, it is damaged, or the backbone that it was trained on is gone.
    """
    path = _file_of(expanded(target))
    try:
        tensors, document = files.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except files.DamagedFile as error:
        raise UserError(str(error)) from error
    if document.get("kind") != KIND:
        raise UserError(f"{path}: holds no classifier; {ADVICE}")
    card, plugin = read_card(path, document.get("card")), read_plugin(document.get("plugin"))
    classifier = _classifier(path, tensors, document.get("classifier"), card.feature_dim)
    run: Path | None = path.parent.parent
    if tensors:
        made_with = f"the file was made with {plugin['package']} {plugin['version']}: install it" if plugin else ""
        backbone, run = build_backbone(path, card, lambda built: import_checked(built, tensors), made_with), None
    else:
        with understood(path):
            backbone = _backbone_of(path, document["made_on"])
    if classifier.feature != "pooled":
        backbone = FeatureBackbone(backbone, classifier.feature, card.image_size).eval()
    return Trained(backbone, card, run, files.read_digest(path), path, plugin, classifier)


def _classifier(path: Path, tensors: dict[str, Tensor], about: Any, width: int) -> Classifier:
    """The linear layer of a file, whose tensors are taken out of `tensors`."""
    try:
        weight, bias = tensors.pop(WEIGHT), tensors.pop(BIAS)
        classes = tuple(about["classes"])
        found = Classifier(weight, bias, **{**about, "classes": classes})
        words = (*classes, found.evaluator, found.feature, found.interpolation)
        fits = weight.ndim == 2 and bias.shape == (len(classes),) == weight.shape[:1]
        if not fits or weight.dtype != torch.float32 or bias.dtype != torch.float32:
            raise ValueError
        if not all(isinstance(word, str) for word in words) or found.interpolation not in ("bilinear", "bicubic"):
            raise ValueError
        if found.feature == "pooled" and weight.shape[1] != width:
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"{path}: was written by another version, which this one cannot read") from None
    return found


def newest_classifier() -> Path:
    """Returns the newest run in `runs/` that has a result with a classifier, and tells which one.

    Raises:
        UserError: there is none; it says where they were looked for.
    """
    for run in newest_first(RUNS):
        found = kept_in(run)
        if found:
            log.info(f"using {found[0]}, of the newest run that has a classifier")
            return run
    where = RUNS.absolute()
    raise UserError(
        f"nothing to export: no run in {where} has a classifier; {ADVICE}, and `ssl export classifier RUN` names one"
    )


def kept_in(run: Path) -> list[Path]:
    """Returns the results of a run that have a classifier, the newest first."""
    found = []
    for result in RunDirectory(run).evaluations.glob("*.json"):
        with suppress(OSError, UserError):
            if (result.parent / _entry(result)["file"]).is_file():
                found.append((result.stat().st_mtime_ns, result))
    return [result for _, result in sorted(found, reverse=True)]


def _file_of(target: Path) -> Path:
    if target.is_dir():
        results = kept_in(target)
        if not results:
            raise UserError(f"{target}: has no evaluation with a classifier; {ADVICE}")
        target = results[0]
    if target.suffix != ".json":
        return target
    entry = _entry(target)
    file = target.parent / entry["file"]
    with suppress(FileNotFoundError, files.DamagedFile):  # reported when it is read
        if files.read_digest(file) != entry["sha256"]:
            raise UserError(f"{file}: is not the classifier of {target.name}; run `ssl eval` again")
    return file


def _entry(result: Path) -> dict[str, str]:
    """What a result says of its classifier."""
    try:
        content: Any = json.loads(read_regular(result))
    except FileNotFoundError:
        raise UserError(f"{result}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{result}: cannot be read as a result of `ssl eval` ({error})") from error
    entry = content.get("classifier") if isinstance(content, dict) else None
    names = [entry.get(name) for name in ("file", "sha256")] if isinstance(entry, dict) else [None]
    if not isinstance(entry, dict) or not all(isinstance(name, str) and name.isprintable() for name in names):
        method = content.get("method") if isinstance(content, dict) else None
        trains = method in ("linear", "finetune", "logistic")
        again = "it was not kept; evaluate again, with `ssl eval {} --method {}`"
        run = path_word(result.parent.parent) if result.parent.name == EVALUATIONS else "RUN"
        raise UserError(f"{result}: has no classifier; {again.format(run, method) if trains else ADVICE}")
    return entry


def _backbone_of(path: Path, made_on: dict[str, str]) -> Backbone:
    """The network that a classifier was trained on: of the run that the file is in, by the digests."""
    run = RunDirectory(path.parent.parent)
    others = []
    for file in [*list_checkpoints(run.checkpoints), run.backbone]:
        with suppress(FileNotFoundError, files.DamagedFile):
            if files.read_digest(file) == made_on["file_sha256"]:
                return load_trained(file).backbone
            others.append(file)
    for file in others:
        with suppress(UserError):
            backbone = load_trained(file).backbone
            if state_digest(backbone.requires_grad_(False)) == made_on["weights_sha256"]:
                return backbone
    raise UserError(f"{path}: {run.path} no longer has the backbone that it was trained on; run `ssl eval` again")
