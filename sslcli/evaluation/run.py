"""`evaluate`: loads what was trained, opens labelled data, hands both to an evaluator, keeps what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config.document import Document
from ..config.options import overrides_as_data, validate
from ..contracts.data import Dataset, Part
from ..contracts.errors import UserError
from ..contracts.evaluation import EvaluationResult, Evaluator
from ..contracts.export import Trained
from ..plugins import load
from ..runs import files
from ..runs.device import resolve_device
from ..runs.directory import RunDirectory
from ..runs.trained import load_trained, stored_config
from .subject import FrozenSubject

Tell = Callable[[str], None]


def evaluate(
    target: Path, method: str, overrides: list[str], *, device: str = "auto", seed: int = 0, tell: Tell
) -> EvaluationResult:
    """Evaluates a trained backbone, and writes `eval/METHOD.json` where the target is a run.

    Args:
        target: a run directory, a checkpoint or a backbone file.
        method: name of the evaluator.
        overrides: its options (`k=[20]`), and those of the data (`data.root=…`).
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        seed: for whatever the evaluation draws.
        tell: shows a line to the user.

    Raises:
        UserError: nothing trained there, no such evaluator, wrong options, no labelled data.
    """
    cls: type[Evaluator] = load("evaluators", method)
    document = overrides_as_data(overrides)
    chosen = {key: value for key, value in document.data.items() if key != "data"}
    evaluator = cls(validate(cls.Options, chosen, repr(method), document))
    place = resolve_device(device)
    trained = load_trained(target, tell)
    train, held_out = open_parts(trained, target, document)
    result = evaluator.evaluate(FrozenSubject(trained, train, held_out, place, seed=seed, tell=tell))
    result.protocol["options"] = evaluator.options.plain()
    result.protocol["file_sha256"] = trained.digest
    if trained.run is not None:
        tell(f"wrote {write_result(trained.run, method, result)}")
    return result


def open_parts(trained: Trained, target: Path, document: Document) -> tuple[Dataset | None, Dataset | None]:
    """Opens the labelled images to fit and to judge on: the run's own data set, changed by `data.` overrides."""
    asked = document.data.get("data") or {}
    if not isinstance(asked, dict):
        asked = {"name": asked}
    config = stored_config(target)
    stored: dict[str, Any] = config["data"] if config is not None else {"name": trained.card.dataset}
    if "name" in asked and asked["name"] != stored["name"]:
        stored = {}
    merged = {**stored, **asked}
    name = merged.pop("name")
    if not isinstance(name, str):
        raise UserError(f"command line: data.name: should be the name of a data set, not {name!r}")
    cls: type[Dataset] = load("datasets", name)
    options = validate(cls.Options, merged, repr(name), document, ("data",))
    opened: list[Dataset | None] = []
    parts: tuple[Part, Part] = ("train", "eval")
    for part in parts:
        part_options = cls.labelled(options, part)
        if part_options is not None and "limit" in asked:  # asked for here, it holds for both parts
            part_options = part_options.model_copy(update={"limit": options.limit})
        opened.append(None if part_options is None else cls.open(part_options))
    return opened[0], opened[1]


def write_result(run: Path, method: str, result: EvaluationResult) -> Path:
    """Writes `eval/METHOD.json`; an earlier one of that name is kept as `METHOD.1.json`, `METHOD.2.json`, …"""
    folder = RunDirectory(run).evaluations
    path = folder / f"{method}.json"
    content = {"method": method, "metrics": result.metrics, "protocol": result.protocol, "details": result.details}
    try:
        folder.mkdir(exist_ok=True)
        if path.exists():
            number = 1
            while (earlier := folder / f"{method}.{number}.json").exists():
                number += 1
            path.rename(earlier)
        files.write_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path
