"""The plugins that a config names, with their validated options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sslcli.contracts.options import Options

from . import schema
from .document import Key
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


def choose(section: str, group: str, value: Any, default: Mapping[str, Any] | None, problems: Problems) -> Any:
    """Resolves a section that names a plugin; without a name (`optimizer.lr=0.1` alone) it modifies the default.

    None without a value and a default, or after adding a problem, as of the functions below.
    """
    if default is not None and (value is None or (isinstance(value, dict) and value.get("name") is None)):
        value = {**default, **(value or {}), "name": default["name"]}
    if value is None:
        return None
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        problems.add((section,), f"should be a name, or a mapping with `name`; see `ssl list {group}`")
        return None
    options = {k: v for k, v in value.items() if k != "name"}
    return _plugin((section,), group, value["name"], options, (section, "name"), problems)


def _plugin(key: Key, group: str, name: str, options: Any, name_key: Key, problems: Problems) -> Choice | None:
    cls = problems.load(group, name, name_key)
    parsed = cls and parse_into(problems, cls.Options, options, repr(name), key)
    return Choice(name, cls, parsed) if parsed is not None else None


def parse_section(section: str, model: type[Options], value: Any, problems: Problems) -> Any:
    """Validates a section of options without a plugin."""
    if isinstance(value, dict):
        return parse_into(problems, model, value, repr(section), (section,))
    problems.add((section,), f"should be a mapping of options, not {show(value)}")
    return None


def choose_callbacks(value: Any, problems: Problems) -> dict[str, Choice]:
    """Resolves the section `callbacks`: those that are on by default, and what it says."""
    if not isinstance(value, dict):
        problems.add(("callbacks",), f"should be a mapping of names to options, not {show(value)}")
        return {}
    chosen: dict[str, Any] = {}
    for name, options in {**schema.DEFAULT_CALLBACKS, **value}.items():
        key = ("callbacks", name)
        if isinstance(options, dict):
            chosen[name] = _plugin(key, "callbacks", name, options, key, problems)
        elif options is not None:
            problems.add(key, f"should be a mapping of options, or null to disable it, not {show(options)}")
    return chosen
