"""`evaluate_all`: loads trained backbones, opens labeled data, runs evaluators on them, writes the results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sslcli import distributed
from sslcli.config.options import overrides_as_data
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator
from sslcli.contracts.export import Trained
from sslcli.memory import out_of_memory
from sslcli.runs.arithmetic import exact_float32
from sslcli.runs.device import resolve_device
from sslcli.runs.trained import load_trained
from sslcli.storage import check_output

from .classifier import with_classifier
from .confusion import can_draw
from .parts import LabeledParts, open_parts, pretrained_on, stored_data
from .results import about_spread, beside, draw, has_picture, over_seeds, write_output, write_result
from .seal import SealedSubject
from .selection import ALL, Ready, choose_evaluators, only_possible
from .sharing import opened_alike
from .subject import FrozenSubject
from .tables import Row
from .targets import Target, find_target, load_network, read_shown

log = logging.getLogger(__name__)

#: What to try if there is no room for the network, the images or their features.
_SMALLER = "try fewer images (data.limit), one target at a time, or device cpu if a GPU is full"


@exact_float32()
@out_of_memory("in the evaluation", _SMALLER)
def evaluate_all(
    targets: Sequence[str | Path],
    method: str,
    overrides: list[str],
    *,
    device: str = "auto",
    seed: int = 0,
    seeds: int = 1,
    output: Path | None = None,
) -> list[Row]:
    """Evaluates, and writes `eval/METHOD.json` into each target that is a run.

    All targets are evaluated on the same data: those of `data.…`, else those of the first target that has any. Each is
    given the images in its own size and normalization. Features are computed once per target, for all evaluators and
    seeds.

    Args:
        targets: run directories, checkpoints, backbone files, plain weight files, names of backbones.
        method: name of the evaluator, or `all`.
        overrides: options of the evaluators (`k=[20]`), of the data (`data.root=…`), of networks without a card
            (`backbone.pretrained=true`, `mean`, `std`, `image_size`), `feature` and `interpolation`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        seed: the first seed for whatever the evaluation draws.
        seeds: how many.
        output: a JSON file to write all results to; must not exist. If it cannot be written there is a warning.

    Returns:
        a row for each target and evaluator.

    Raises:
        UserError: nothing trained there, no such evaluator, invalid options, no labeled data, or test images that are
            training images too.
        OutOfMemory: there is not enough memory; what is evaluated by then has been written.
        SslError: an evaluator that breaks its seal or changes the backbone.
    """

    def prepare() -> Prepared:
        with out_of_memory("in the evaluation", _SMALLER):
            return _prepare(targets, method, overrides, device, seed, seeds, output)

    prepared = distributed.together(prepare)
    if len({tuple(digests) for digests in distributed.gather_objects(prepared.digests)}) > 1:
        error = SslError("the processes have read different weights; give all of them the same files")
        error.shared = True
        raise error
    opened_alike(lambda: [prepared.parts.train, prepared.parts.test])
    rows = distributed.lead(
        lambda: _evaluate(prepared, range(seed, seed + seeds), output, strict=method != ALL),
        lambda order: prepared.subjects[order[0]][1].assist(order[1]),
    )
    # A program that calls this on every process has the rows on every process.
    others = distributed.from_main([replace(row, classifier=None) for row in rows or ()])
    return others if rows is None else rows


@dataclass
class Prepared:
    """What `evaluate_all` reads before the first evaluation; on several processes each reads it.

    Attributes:
        targets: what is evaluated, and the data that each was trained on.
        subjects: likewise, in the same order; taken out one by one.
        parts: the labeled images.
    """

    targets: list[tuple[Target, dict[str, Any] | None]]
    subjects: list[tuple[Trained, FrozenSubject, dict[str, Ready]]]
    parts: LabeledParts

    @property
    def digests(self) -> list[str]:
        """Of the networks' weights."""
        return [subject.weights_sha256 for _, subject, _ in self.subjects]


def _prepare(
    targets: Sequence[str | Path],
    method: str,
    overrides: list[str],
    device: str,
    seed: int,
    seeds: int,
    output: Path | None,
) -> Prepared:
    if not targets:
        raise UserError("nothing to evaluate: give a run, a backbone file or a network")
    for name, value, least in (("seed", seed, 0), ("seeds", seeds, 1)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name}: should be a whole number from {least}, not {value!r}")
    document = overrides_as_data(overrides)
    chosen = choose_evaluators(method, document)
    found = [find_target(word) for word in targets]
    shown = read_shown(document, found)
    if output is not None:
        picture = output.with_suffix(".png")
        if picture == output:
            raise UserError(
                f"{output}: results are JSON, and .png is the suffix of their plot; choose another --output"
            )
        for file in (output, picture, beside(output)):
            check_output(file)
    where = distributed.own_device(resolve_device(device))
    loaded = [load_trained(target.path) if target.kind == "trained" else None for target in found]
    stored = [stored_data(trained) if trained is not None else None for trained in loaded]
    first, own = next(((target, data) for target, data in zip(found, stored, strict=True) if data), (None, None))
    needs_labels = any(each.cls.needs_labels for each in chosen.values())
    parts = open_parts(own, document, needs_labels=needs_labels, required=method != ALL)
    chosen = only_possible(chosen, parts.labeled)
    if len(found) > 1:
        whose = "" if first is None or "data" in document.data else f", which {first.word} was trained on"
        log.info(f"evaluating all on {parts.test.info.name}{whose}; each with its own image size and normalization")
    subjects: list[tuple[Trained, FrozenSubject, dict[str, Ready]]] = []
    for target, its_own in zip(found, loaded, strict=True):
        trained = its_own or load_network(target, document, shown, parts, seed=seed)
        ready = {name: each.build(trained.backbone.spec) for name, each in chosen.items()}
        own_shown = shown
        for each in ready.values():
            own_shown = own_shown.model_copy(update={k: v for k, v in each.shown.items() if k not in document.data})
        try:
            subject = FrozenSubject(
                trained, parts.train, parts.test, where, seed=seed, feature=own_shown.feature,
                interpolation=own_shown.interpolation,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{target.word}: {error}") from error
        subject.number = len(subjects)
        subjects.append((trained, subject, ready))
    return Prepared(list(zip(found, stored, strict=True)), subjects, parts)


def _evaluate(prepared: Prepared, seeds: range, output: Path | None, *, strict: bool) -> list[Row]:
    rows: list[Row] = []
    parts, several = prepared.parts, len(prepared.targets) > 1
    if distributed.is_distributed():
        log.info(f"{distributed.world_size()} processes compute features; everything else runs on the main one")
    for target, data in prepared.targets:
        trained, subject, ready = prepared.subjects.pop(0)  # its features are freed with it
        if several:
            log.info(f"{target.word}:")
        seen = pretrained_on(data, parts.test)
        if seen:
            log.info(f"{target.word}: was pre-trained on the test images (without their labels)")
        mine = replace(parts, overlap={**parts.overlap, "pretrained_on_test": seen})
        rows += _run(target, trained, subject, ready, mine, seeds, strict=strict)
        if output is None or several or len(ready) > 1:
            for row in rows:
                row.classifier = None
    if not rows:
        raise UserError("no evaluation was possible; see the messages above")
    _write(rows, output, parts.test.info.classes or ())
    return rows


def run_evaluator(name: str, evaluator: Evaluator, subject: FrozenSubject, seed: int) -> EvaluationResult:
    """Runs an evaluator behind the seal, and checks that it has left everything as it was.

    Raises:
        SslError: it read the test images before it had chosen, or changed the backbone.
    """
    cls = type(evaluator)
    sealed = SealedSubject(subject, name, seed=seed, chooses=cls.chooses, needs_labels=cls.needs_labels)
    result = evaluator.evaluate(sealed)
    subject.check_unchanged(name)
    result.protocol["decided"] = sealed.decided
    return result


def _run(
    target: Target,
    trained: Trained,
    subject: FrozenSubject,
    ready: dict[str, Ready],
    parts: LabeledParts,
    seeds: range,
    *,
    strict: bool,
) -> list[Row]:
    rows = []
    card = {**asdict(trained.card), "mean": list(trained.card.mean), "std": list(trained.card.std)}
    for name, each in ready.items():
        evaluator = each.evaluator
        if each.published is not None:
            log.info(f"{name}: {each.published['name']}, the settings of {each.published['source']}")
        own = seeds if type(evaluator).seeded else seeds[:1]
        if len(own) < len(seeds):
            log.info(f"{name}: has no randomness, so one seed is enough")
        results = []
        batched = "batch_size" in type(evaluator).Options.model_fields
        advice = "try a smaller batch_size, or fewer images (data.limit)" if batched else _SMALLER
        try:
            for seed in own:
                if len(own) > 1:
                    log.info(f"{name}: seed {seed}")
                with out_of_memory(f"evaluating {name!r}", advice):
                    results.append(run_evaluator(name, evaluator, subject, seed))
                    if len(results) > 1:
                        results[-1].classifier = None  # that of the first seed is kept
        except UserError as error:
            if strict:
                raise
            log.warning(f"skipped: {name}: {error}")
            continue
        row = Row(target.word, name, over_seeds(results, own))
        if (text := about_spread(name, row.result)) is not None:
            log.info(text)
        row.result.protocol |= {
            "options": evaluator.options.plain(),
            "published": each.published,
            "file_sha256": trained.digest,
            "weights_sha256": subject.weights_sha256,
            "overlap": parts.overlap,
            "card": card,
        }
        fitted, row.result.classifier = row.result.classifier, None
        if fitted is not None:
            row.classifier = with_classifier(trained, fitted, subject, name)
            if fitted.backbone is None and trained.run is not None:
                row.made_on = {"file_sha256": trained.digest, "weights_sha256": subject.weights_sha256}
        if trained.run is not None:
            try:
                row.written = write_result(trained.run, row, parts.test.info.classes or ())
            except UserError as error:  # another user's run, for example: the result is shown all the same
                log.warning(str(error))
        rows.append(row)
    return rows


def _write(rows: list[Row], output: Path | None, classes: Sequence[str]) -> None:
    if any(has_picture(row) for row in rows) and not can_draw():
        log.info("confusion matrix not plotted: matplotlib is not installed (pip install 'sslcli[plots]')")
    if output is not None:
        try:
            write_output(output, rows)
        except UserError as error:  # hours may have gone into the numbers: they are shown all the same
            log.warning(str(error))
            return
        log.info(f"wrote {output}")
        if len(rows) == 1:
            draw(rows[0], output.with_suffix(".png"), classes)
        return
    unwritten = list(dict.fromkeys(row.target for row in rows if row.written is None))
    if unwritten:
        log.info(f"results shown but not saved: {', '.join(unwritten)}; use --output FILE to save them")
