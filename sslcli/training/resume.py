"""Whether a run may be resumed with a config that differs from the one it was started with."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from sslcli.config import schema
from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options, ResumeRule
from sslcli.data.files import FileOptions


def differences(config: RunConfig, stored: dict[str, Any]) -> list[tuple[ResumeRule, str]]:
    """Lists the differences between a config and the stored plain config of a run: the field's rule, and a message."""
    found: list[tuple[ResumeRule, str]] = []
    for section, now in config.plain().items():
        before = stored.get(section)
        if now == before:
            continue
        if isinstance(now, dict) and isinstance(before, dict):
            before = _completed(config, section, before)
            for name in sorted({*now, *before}):
                if now.get(name) != before.get(name):
                    line = f"{section}.{name}: {_show(before.get(name))} in the run, {_show(now.get(name))} now"
                    found.append((_rule(config, section, name), line))
        else:
            found.append(("fixed", f"{section}: {_show(before)} in the run, {_show(now)} now"))
    return found


def _completed(config: RunConfig, section: str, stored: dict[str, Any]) -> dict[str, Any]:
    """The stored options, with the present defaults of those that did not exist when the run was started."""
    values = {name: value for name, value in stored.items() if name != "name"}
    if section == "callbacks" or ("name" in stored and stored["name"] != getattr(config, section).name):
        return stored
    try:
        return {**stored, **_model(config, section).parse(values).plain()}
    except ValidationError:  # an option was removed or changed its meaning: all are shown as they were written
        return stored


def _model(config: RunConfig, section: str) -> type[Options]:
    models: dict[str, Any] = {"training": schema.TrainingOptions, "checkpoints": schema.CheckpointOptions}
    model: type[Options] = models[section] if section in models else getattr(config, section).cls.Options
    return model


def _rule(config: RunConfig, section: str, name: str) -> ResumeRule:
    if section == "callbacks":
        return "free"
    return _model(config, section).resume_rule(name) if name != "name" else "fixed"


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
            "undo the change, or start a new run with another --output"
        )
    return [f"resuming with {line}" for rule, line in found if rule == "warn"]


def keep_resolved(config: RunConfig, stored: dict[str, Any]) -> RunConfig:
    """Replaces each `auto` by what it was resolved to when the run began."""
    # A run of a version that did not compile is resumed without.
    training = {"compile": "none", **stored.get("training", {})}
    reuse = {
        name: training[name]
        for name in ("device", "precision", "compile")
        if getattr(config.training, name) == "auto" and isinstance(training.get(name), str)
    }
    data = config.data
    if isinstance(data.options, FileOptions) and data.options.cache == "auto":
        # Likewise: a run of a version that had no cache is resumed without.
        cache = stored.get("data", {}).get("cache", "none")
        data = dataclasses.replace(data, options=data.options.model_copy(update={"cache": cache}))
    return dataclasses.replace(config, data=data, training=config.training.model_copy(update=reuse))
