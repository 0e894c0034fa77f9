"""Collects the problems of a configuration: one line each, with the file and line of the value."""

from __future__ import annotations

import re
from typing import Any

from sslcli.contracts.errors import ConfigError
from sslcli.plugins import PluginError, load

from .document import Document, Key, dump_value


class Problems:
    """Collects the problems of a whole configuration, to raise them together."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.lines: list[str] = []

    def add(self, key: Key, message: str) -> None:
        line = ": ".join([self.document.origin(key), *([".".join(key)] if key else []), message])
        if line not in self.lines:
            self.lines.append(line)

    def load(self, group: str, name: str, key: Key) -> Any:
        """Returns the plugin class `name` of a group, or None after adding a problem at `key`."""
        try:
            return load(group, name)
        except PluginError as error:
            self.add(key, str(error))
            return None

    def raise_any(self) -> None:
        """Raises ConfigError if there is a problem; those of one file together, in the order of its lines."""
        if self.lines:
            sources = list(dict.fromkeys(_source(line)[0] for line in self.lines))
            raise ConfigError(sorted(self.lines, key=lambda line: (sources.index(_source(line)[0]), _source(line)[1])))


def _source(line: str) -> tuple[str, int]:
    """The file and line number with which a problem starts; 0 if it has none."""
    found = re.match(r"(.*?):(\d+)?:? ", line)
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def show(value: Any) -> str:
    """Returns a plain value for a message: as YAML, but strings always in quotes, and shortened."""
    text = repr(value) if isinstance(value, str) else dump_value(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
