"""Whether a run may be resumed with a config that differs from the one it was started with."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sslcli import plugins
from sslcli.config import schema
from sslcli.config.resolve import Choice, RunConfig
from sslcli.config.schema import PLUGIN_SECTIONS
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options, ResumeRule
from sslcli.data.files import FileOptions
from sslcli.runs.checkpoint import Checkpoint, NewerVersion, read_checkpoint
from sslcli.shell import path_word

log = logging.getLogger(__name__)

_MODELS: dict[str, type[Options]] = {"training": schema.TrainingOptions, "checkpoints": schema.CheckpointOptions}


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint to go on from; UserError if a newer version wrote it, which must not be gone on over."""
    try:
        return read_checkpoint(path)
    except NewerVersion as error:
        advice = "resume with that version, or move the file away to go on from the one before it"
        raise UserError(f"{error}; {advice}") from error


def differences(config: RunConfig, stored: dict[str, Any]) -> list[tuple[ResumeRule, str]]:
    """Lists the differences between a config and the stored plain config of a run: the field's rule, and a message."""
    found: list[tuple[ResumeRule, str]] = []
    for section, now in config.plain().items():
        before = stored.get(section)
        if section == "views" and before is not None:
            found += [("fixed", line) for line in _phase_differences(now, before)]
        elif isinstance(now, dict) and isinstance(before, dict):
            if section == "callbacks":
                continue  # may change freely
            model: type[Options] = _MODELS.get(section) or getattr(config, section).cls.Options
            if before.get("name") == now.get("name"):
                before = _completed(model, before)
            for name in sorted({*now, *before}):
                lines = _changes(f"{section}.{name}", before.get(name), now.get(name))
                found += [(model.resume_rule(name), line) for line in lines]
        else:
            found += [("fixed", line) for line in _changes(section, before, now)]
    return found


def _changes(key: str, before: Any, now: Any) -> list[str]:
    """A line for each value that differs, of nested options for each of theirs."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        return [line for name in names for line in _changes(f"{key}.{name}", before.get(name), now.get(name))]
    return [] if before == now else [f"{key}: {_show(before)} in the run, {_show(now)} now"]


def _completed(model: type[Options], stored: dict[str, Any]) -> dict[str, Any]:
    """The stored options, and what those that did not exist when the run was started meant to it."""
    options = {name: value for name, value in stored.items() if name != "name"}
    try:
        return {**stored, **model.parse(options).as_in_run(options).plain()}
    except ValidationError:  # an option was removed or changed its meaning: all are shown as they were written
        return stored


def _phase_differences(now: Any, before: Any) -> list[str]:
    """By phase, where they end at the same points; lists of views are the only phase of a run."""
    if isinstance(now, list) and isinstance(before, list):
        return _view_differences("views", now, before)
    phases = [each["phases"] if isinstance(each, dict) else [] for each in (now, before)]
    ends = [[phase.get("until") for phase in each] for each in phases]
    if ends[0] != ends[1]:
        return [f"views: {_show(before)} in the run, {_show(now)} now"]
    return [
        line
        for number, (phase, stored) in enumerate(zip(*phases, strict=True))
        for line in _view_differences(f"views.phases.{number}.views", phase["views"], stored["views"])
    ]


def _view_differences(key: str, now: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """By view and option, where only options of the same operations differ."""
    if [_layout(view) for view in now] != [_layout(view) for view in before]:
        return [f"{key}: {_show(before)} in the run, {_show(now)} now"]
    lines: list[str] = []
    number = 0  # of a view, as a config names it
    for view, stored in zip(now, before, strict=True):
        for operation, old in zip(view["operations"], stored["operations"], strict=True):
            old = _completed(plugins.load("augmentations", operation["name"]).Options, old)
            lines += _changes(f"{key}.{number}.{operation['name']}", old, operation)
        number += view["count"]
    return lines


def _layout(view: dict[str, Any]) -> tuple[int, int, list[str]]:
    return view["count"], view["size"], [operation["name"] for operation in view["operations"]]


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check(config: RunConfig, stored: dict[str, Any], run: str) -> list[str]:
    """Returns warnings about what differs.

    Raises:
        UserError: if a fixed field differs, with every such difference.
    """
    found = differences(config, stored)
    fixed = [line for rule, line in found if rule == "fixed"]
    if fixed:
        raise UserError(
            f"{run}: cannot be resumed with another config ({'; '.join(fixed)}); "
            f"undo the change (`ssl train {path_word(Path(run))} --resume` has the run's own config), or start a new "
            "run with another --output"
        )
    return [f"resuming with {line}" for rule, line in found if rule == "warn"]


def keep_resolved(config: RunConfig, stored: dict[str, Any]) -> RunConfig:
    """Replaces each `auto` by what it was resolved to when the run began, and options whose default has changed since
    then by what the run has."""
    # A run of a version that did not compile is resumed without.
    training = {"compile": "none", **stored.get("training", {})}
    reuse = {
        name: training[name]
        for name in ("device", "precision", "compile")
        if getattr(config.training, name) == "auto" and isinstance(training.get(name), str)
    }
    if "batch_size" not in config.training.model_fields_set and isinstance(training.get("batch_size"), int):
        reuse["batch_size"] = training["batch_size"]  # the default may have been more than there were images
    sections: dict[str, Any] = {
        section: _as_in_run(getattr(config, section), stored.get(section)) for section in PLUGIN_SECTIONS
    }
    if not config.own_warmup:
        sections["schedule"] = _with_warmup(sections["schedule"], stored.get("schedule"), config.training.epochs)
    data = sections.pop("data")
    if isinstance(data.options, FileOptions) and data.options.cache == "auto":
        # Likewise: a run of a version that had no cache is resumed without.
        cache = stored.get("data", {}).get("cache", "none")
        data = dataclasses.replace(data, options=data.options.model_copy(update={"cache": cache}))
    return dataclasses.replace(config, **sections, data=data, training=config.training.model_copy(update=reuse))


def _with_warmup(choice: Choice, stored: Any, epochs: int) -> Choice:
    """The schedule of a config that does not set its warm-up, with that of the run, which another number of epochs does
    not change; as it is where it would be longer than the run."""
    if not isinstance(stored, dict) or stored.get("name") != choice.name:
        return choice
    now, kept = getattr(choice.options, "warmup_epochs", None), stored.get("warmup_epochs")
    if not isinstance(now, float) or not isinstance(kept, int | float) or now == kept or kept > epochs:
        return choice
    if stored.get("warmup_steps") != getattr(choice.options, "warmup_steps", None):
        return choice
    log.info(f"schedule.warmup_epochs: {kept:g} as in the run so far")
    return dataclasses.replace(choice, options=choice.options.model_copy(update={"warmup_epochs": float(kept)}))


def _as_in_run(choice: Choice, stored: Any) -> Choice:
    """The plugin of a config, with the options of a run where `Options.legacy` says so."""
    if not isinstance(stored, dict) or stored.get("name") != choice.name:
        return choice
    return dataclasses.replace(choice, options=choice.options.as_in_run(stored))
