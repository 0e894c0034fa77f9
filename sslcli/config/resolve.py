"""From a document to a `RunConfig`: resolves every name, validates every option, reports all problems at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslcli.contracts.options import Options
from sslcli.plugins import suggest

from . import schema
from .document import Document, Key
from .merge import read_config
from .options import parse_into
from .problems import Problems, show


@dataclass(frozen=True)
class Choice:
    """A plugin that a config names, with its validated options."""

    name: str
    cls: Any
    options: Any

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, **self.options.plain()}


@dataclass(frozen=True)
class RunConfig:
    """A complete, valid configuration. `views` are `ViewSpec`s with every operation and option."""

    seed: int
    method: Choice
    backbone: Choice
    data: Choice
    views: tuple[Any, ...]
    optimizer: Choice
    schedule: Choice
    training: schema.TrainingOptions
    checkpoints: schema.CheckpointOptions
    callbacks: dict[str, Choice]
    output: Path | None = field(default=None, compare=False)

    def plain(self) -> dict[str, Any]:
        """Returns the config as plain data, without `output`; `resolve` makes an equal config of it."""
        return {
            "seed": self.seed,
            "method": self.method.plain(),
            "backbone": self.backbone.plain(),
            "data": self.data.plain(),
            "views": [_plain_view(view) for view in self.views],
            "optimizer": self.optimizer.plain(),
            "schedule": self.schedule.plain(),
            "training": self.training.plain(),
            "checkpoints": self.checkpoints.plain(),
            "callbacks": {
                name: choice.options.plain() if (choice := self.callbacks.get(name)) is not None else None
                for name in sorted({*self.callbacks, *schema.DEFAULT_CALLBACKS})
            },
        }

    def digest(self) -> str:
        """Returns 8 hex digits of the resolved config, for the default name of the run directory."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:8]


def _plain_view(view: Any) -> dict[str, Any]:
    operations = [{"name": operation.name, **operation.options} for operation in view.operations]
    return {"count": view.count, "size": view.size, "operations": operations}


_SECTIONS = (
    "seed", "method", "backbone", "data", "views", "optimizer", "schedule", "training", "checkpoints", "callbacks",
    "output",
)  # fmt: skip


def load_config(path: Path, overrides: list[str]) -> RunConfig:
    """Reads, merges, overrides, resolves and validates a config file.

    Raises:
        ConfigError: with every problem, each as `file:line: key: what is wrong`.
    """
    return resolve(read_config(path, overrides))


def resolve(document: Document) -> RunConfig:
    """Resolves a document; ConfigError with every problem found in it."""
    problems = Problems(document)
    data = {key: value for key, value in document.data.items() if value is not None}
    for key in data:
        if key not in _SECTIONS:
            problems.add((key,), f"unknown section{suggest(key, list(_SECTIONS), otherwise=True)}")
    reader = _SectionReader(problems)
    for required, example in (("method", "method: simclr"), ("data", "data: {name: cifar10, root: ./data}")):
        if required not in data:
            problems.add_missing(required, f"missing; write `{example}`")
    method = reader.choice("method", "methods", data.get("method"))
    defaults = method.cls.defaults if method is not None else {}
    if method is not None and "optimizer" not in data and "optimizer" not in defaults:
        problems.add_missing("optimizer", f"missing; {method.name!r} has no default for it")
    backbone = reader.choice("backbone", "backbones", data.get("backbone"), schema.DEFAULT_BACKBONE)
    source = reader.choice("data", "datasets", data.get("data"))
    optimizer = reader.choice("optimizer", "optimizers", data.get("optimizer"), defaults.get("optimizer"))
    schedule_default = defaults.get("schedule", schema.DEFAULT_SCHEDULE)
    schedule = reader.choice("schedule", "schedules", data.get("schedule"), schedule_default)
    asked = data.get("training", {})
    asked = {**defaults.get("training", {}), **asked} if isinstance(asked, dict) else asked
    training = reader.core("training", schema.TrainingOptions, asked)
    checkpoints = reader.core("checkpoints", schema.CheckpointOptions, data.get("checkpoints", {}))
    callbacks = reader.callbacks(data.get("callbacks", {}))
    views = _views(data.get("views"), method, source, problems)
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        problems.add(("seed",), f"should be a whole number from 0, not {show(seed)}")
    output = data.get("output")
    if output is not None and not isinstance(output, str):
        problems.add(("output",), f"should be the path of a directory, not {show(output)}")
    problems.raise_any()
    return RunConfig(
        seed=seed, method=method, backbone=backbone, data=source, views=views, optimizer=optimizer, schedule=schedule,
        training=training, checkpoints=checkpoints, callbacks=callbacks,
        output=None if output is None else Path(output).expanduser(),
    )  # fmt: skip


def _views(section: Any, method: Choice | None, source: Choice | None, problems: Problems) -> tuple[Any, ...]:
    complete = isinstance(section, list) or (isinstance(section, dict) and section.get("preset") is not None)
    if method is None and not complete:
        return ()  # the method already has a problem, and the views depend on it
    from .views_section import resolve_views  # imports torch, which `ssl --help` and `ssl list` do without

    size = source.cls.view_size(source.options) if source is not None else 224
    asked = section.get("size") if isinstance(section, dict) else None
    shown = asked if isinstance(asked, int) and asked > 0 else size
    before = len(problems.lines)
    recipe = method.cls.recipe(method.options, shown) if method is not None else {}
    views = resolve_views(section, recipe, size, problems)
    if method is not None and len(problems.lines) == before:
        wanted, least, count = method.cls.view_count, method.cls.minimum_views, sum(view.count for view in views)
        if count != (count if wanted is None else wanted) or count < least:
            needs = f"at least {least}" if wanted is None else str(wanted)
            problems.add(("views",), f"{method.name!r} needs {needs} views of an image, not {count}")
    return views


class _SectionReader:
    """Resolves sections, each of them to None if it has a problem."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def choice(self, section: str, group: str, value: Any, default: Mapping[str, Any] | None = None) -> Any:
        """Resolves a section that names a plugin; without a name (`optimizer.lr=0.1` alone) it modifies the default."""
        if value is None:
            value = default
        elif isinstance(value, dict) and value.get("name") is None and default is not None:
            value = {**default, **value, "name": default["name"]}
        if value is None:
            return None
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            self.problems.add((section,), f"should be a name, or a mapping with `name`; see `ssl list {group}`")
            return None
        options = {k: v for k, v in value.items() if k != "name"}
        return self.plugin((section,), group, value["name"], options, (section, "name"))

    def plugin(self, key: Key, group: str, name: str, options: dict[str, Any], name_key: Key) -> Choice | None:
        cls = self.problems.load(group, name, name_key)
        parsed = cls and parse_into(self.problems, cls.Options, options, repr(name), key)
        return Choice(name, cls, parsed) if parsed is not None else None

    def core(self, section: str, model: type[Options], value: Any) -> Any:
        if not isinstance(value, dict):
            self.problems.add((section,), f"should be a mapping of options, not {show(value)}")
            return None
        return parse_into(self.problems, model, value, repr(section), (section,))

    def callbacks(self, value: Any) -> dict[str, Choice]:
        if not isinstance(value, dict):
            self.problems.add(("callbacks",), f"should be a mapping of names to options, not {show(value)}")
            return {}
        chosen: dict[str, Choice] = {}
        for name, options in {**schema.DEFAULT_CALLBACKS, **value}.items():
            if options is None:
                continue  # disabled
            key = ("callbacks", name)
            if not isinstance(options, dict):
                self.problems.add(key, f"should be a mapping of options, or null to disable it, not {show(options)}")
                continue
            choice = self.plugin(key, "callbacks", name, options, key)
            if choice is not None:
                chosen[name] = choice
        return chosen
