"""Results of several seeds become one, and are written into the run, with a plot of the confusion matrix."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult
from sslcli.runs.directory import RunDirectory
from sslcli.storage import read_regular, unwritable, write_text, writing

from .classifier import save_classifier
from .confusion import can_draw, write_confusion
from .tables import Row

log = logging.getLogger(__name__)

#: Of classifiers.
KEPT = ".safetensors"
#: With more classes there is no picture, only the numbers in the file.
PICTURE_CLASSES = 200


def over_seeds(results: Sequence[EvaluationResult], seeds: Sequence[int]) -> EvaluationResult:
    """Joins the results of one evaluator: each metric's mean, and its standard deviation with n − 1.

    Args:
        results: one for each seed.
        seeds: those.

    Returns:
        the first result's protocol, details (so its confusion matrix) and classifier, with each seed's numbers under
        `seeds`.
    """
    first = results[0]
    protocol = {**first.protocol, "seeds": list(seeds)}
    if len(results) == 1:
        return EvaluationResult(first.metrics, protocol, first.details, classifier=first.classifier)
    names = [name for name in first.metrics if all(name in each.metrics for each in results)]
    values = {name: [each.metrics[name] for each in results] for name in names}
    rows: list[dict[str, Any]] = [
        {"seed": seed, "metrics": each.metrics, "decided": each.protocol.get("decided")}
        for seed, each in zip(seeds, results, strict=True)
    ]
    return EvaluationResult(
        {name: statistics.fmean(numbers) for name, numbers in values.items()},
        protocol,
        {**first.details, "seeds": rows},
        {name: statistics.stdev(numbers) for name, numbers in values.items()},
        first.classifier,
    )


def about_spread(name: str, result: EvaluationResult) -> str | None:
    """Returns a line on what the ± of a result over seeds leaves out: the sampling error √(p(1 − p)/n) of its n test
    images, and the seed of pre-training. None if it has no top-1 over several seeds, or no number of test images."""
    images, spread = result.protocol.get("eval_images"), result.spread.get("top1")
    p = result.metrics.get("top1", -1.0)
    if not images or spread is None or not 0 <= p <= 1:  # a plugin's may be anything
        return None
    seeds = len(result.protocol["seeds"])
    error = math.sqrt(p * (1 - p) / images)
    return (
        f"{name}: ± is the spread over {seeds} seeds of the evaluation alone; the accuracy on {images:,} test "
        f"images has a standard error of {100 * error:.2f} points, and another seed of pre-training adds its own spread"
    )


def write_result(run: Path, row: Row, classes: Sequence[str]) -> Path:
    """Writes `eval/METHOD.json`, `.png` and `.safetensors`, the classifier; earlier ones of that name become
    `METHOD.1.json`, `METHOD.2.json`, …

    Raises:
        UserError: it cannot be written.
    """
    folder = RunDirectory(run).evaluations
    name = row.method.replace(":", "-").replace("/", "-")
    path = folder / f"{name}.json"
    with writing(path):
        folder.mkdir(exist_ok=True)
        with _set_aside(path):
            keep_classifier(row, path.with_suffix(KEPT))
            write_text(path, json.dumps(row.full(), indent=2) + "\n")
    log.info(f"wrote {path}")
    draw(row, path.with_suffix(".png"), classes)
    return path


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Keeps an earlier result, with its plot and classifier, under the next number. If the block fails, nothing
    changes; no room is needed for that."""
    number = 1
    while (earlier := path.with_name(f"{path.stem}.{number}.json")).exists():
        number += 1
    moved = [suffix for suffix in (".png", KEPT) if path.exists() and path.with_suffix(suffix).exists()]
    if path.exists():  # it stays where it is until the new one replaces it
        try:
            text = read_regular(path).decode()
        except (OSError, ValueError):  # whatever it is, it is kept
            moved.append(".json")
        else:
            name, kept = (json.dumps(each.with_suffix(KEPT).name) for each in (path, earlier))
            write_text(earlier, text.replace(f'"file": {name}', f'"file": {kept}'))  # the result names its classifier
    try:
        for suffix in moved:
            path.with_suffix(suffix).rename(earlier.with_suffix(suffix))
        yield
    except OSError:
        path.with_suffix(KEPT).unlink(missing_ok=True)
        for suffix in moved:
            earlier.with_suffix(suffix).rename(path.with_suffix(suffix))
        earlier.unlink(missing_ok=True)
        raise


def beside(output: Path) -> Path:
    """Returns where the classifier of a result goes that is not written into a run: never over a network's own file."""
    return output.with_name(f"{output.stem}-classifier{KEPT}")


def keep_classifier(row: Row, path: Path) -> None:
    """Writes the classifier of a row, if it has one; the result names it."""
    if row.classifier is None:
        return
    try:
        row.kept = {"file": path.name, "sha256": save_classifier(path, row.classifier, row.made_on)}
    except UserError as error:  # the numbers are worth keeping all the same
        log.warning(str(error))
    row.classifier = None


def write_output(path: Path, rows: Sequence[Row]) -> None:
    """Writes the file of `--output`: a single result as in the run directory, or several under `results`.

    Raises:
        UserError: it cannot be written.
    """
    if len(rows) == 1 and rows[0].classifier is not None:
        rows[0].made_on = None  # nothing leads from here to a run
        keep_classifier(rows[0], beside(path))
    elif len(rows) == 1 and rows[0].kept and rows[0].written:
        rows[0].kept |= {"file": str(rows[0].written.absolute().with_suffix(KEPT))}
    several = {"results": [{"target": row.target, **row.full()} for row in rows]}
    content = {"target": rows[0].target, **rows[0].full()} if len(rows) == 1 else several
    with writing(path):
        write_text(path, json.dumps(content, indent=2) + "\n")


def has_picture(row: Row) -> bool:
    """Returns whether a result has a confusion matrix of a size that can be drawn."""
    return 2 <= len(row.result.details.get("confusion") or ()) <= PICTURE_CLASSES


def draw(row: Row, path: Path, classes: Sequence[str]) -> None:
    """Plots the confusion matrix as a PNG file, if the result has one and matplotlib is installed.

    One that cannot be written is reported: the numbers, which are worth more, are there.
    """
    if not (has_picture(row) and can_draw()):
        return
    matrix, seeds = row.result.details["confusion"], row.result.details.get("seeds")
    title = f"{Path(row.target).name or row.target}: {row.method}"
    top1 = (seeds[0]["metrics"] if seeds else row.result.metrics).get("top1")
    if top1 is not None:
        title += f", top-1 {top1:.1%}" + (f" (seed {seeds[0]['seed']})" if seeds else "")
    names = classes if len(classes) == len(matrix) else [str(index) for index in range(len(matrix))]
    try:
        write_confusion(path, matrix, names, title)
    except OSError as error:
        log.warning(f"{path}: {unwritable(error)}")
    else:
        log.info(f"wrote {path}")
