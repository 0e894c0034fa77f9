"""Turns pydantic's errors into one line per problem, with the file and line of the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from sslcli.contracts.errors import ConfigError
from sslcli.plugins import PluginError, load, suggest

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

    def add_missing(self, section: str, message: str) -> None:
        """Adds a problem about a section that is in no file."""
        file = self.document.origin(()).rpartition(":")[0]
        self.lines.append(f"{file}: {section}: {message}" if file else f"{section}: {message}")

    def load(self, group: str, name: str, key: Key) -> Any:
        """Returns the plugin class `name` of a group, or None after adding a problem at `key`."""
        try:
            return load(group, name)
        except PluginError as error:
            self.add(key, str(error))
            return None

    def add_validation(
        self,
        prefix: Key,
        error: ValidationError,
        model: type[BaseModel],
        owner: str,
        data: Any,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Adds every problem of a pydantic error.

        Args:
            prefix: the key of the section that was validated.
            error: what pydantic raised.
            model: the class that was validated, for its field names.
            owner: who has the options, in messages about unknown ones (`'lars'`).
            data: the section's plain data, to distinguish keys from pydantic's labels for the members of unions.
            renamed: the keys of options that have another name in the config (`scale` is `crop_scale`).
        """
        grouped: dict[Key, list[tuple[str, str]]] = {}
        items = error.errors(include_url=False)
        for item in items:
            if item["type"] == "too_short" and any(item["loc"] == other["loc"][:-1] for other in items):
                continue  # the missing elements are those that have a problem
            path, fields = _path(item["loc"], data, model)
            path = tuple((renamed or {}).get(part, part) for part in path)
            grouped.setdefault((*prefix, *path), []).append(_message(item, path, fields, owner))
        for key, messages in grouped.items():
            # A union has one problem: `should be 'wide' or a valid number, not 'narrow'`.
            first, *others = dict.fromkeys(text for text, _ in messages)
            given = next((given for _, given in messages if given), "")
            self.add(key, " or ".join([first, *(text.removeprefix("should be ") for text in others)]) + given)

    def raise_any(self) -> None:
        """Raises ConfigError if there is a problem; those of one file together, in the order of its lines."""
        if self.lines:
            sources = list(dict.fromkeys(_source(line)[0] for line in self.lines))
            raise ConfigError(sorted(self.lines, key=lambda line: (sources.index(_source(line)[0]), _source(line)[1])))


def _source(line: str) -> tuple[str, int]:
    """The file and line number with which a problem starts; 0 if it has none."""
    found = re.match(r"(.*?):(\d+)?:? ", line)
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def _path(location: tuple[int | str, ...], data: Any, model: type[BaseModel]) -> tuple[Key, list[str]]:
    """The part of pydantic's location that is a key of the data or a missing field, and the last model's fields."""
    path: list[str] = []
    fields = list(model.model_fields)
    for part in location:
        annotation: Any = None
        if isinstance(data, dict) and (part in data or str(part) in fields):
            annotation = model.model_fields[str(part)].annotation if str(part) in fields else None
            path.append(str(part))
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(str(part))
            data = data[part]
        else:
            continue  # the label of a union's member
        nested = _model_in(annotation)
        if nested is not None and isinstance(data, dict):
            model, fields = nested, list(nested.model_fields)
        elif not isinstance(data, dict | list):
            break
    return tuple(path), fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _message(item: Any, path: Key, fields: list[str], owner: str) -> tuple[str, str]:
    """What is wrong, and `, not …` if that helps."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"unknown option of {owner}{suggest(path[-1], fields, otherwise=True)}", ""
    if kind == "missing":
        return "has too few values" if isinstance(item["loc"][-1], int) else "missing; it has no default", ""
    text: str = item["msg"].replace("Input should be", "should be").removeprefix("Value error, ")
    text = _KINDS.get(text, text).removeprefix("Tuple ").replace(" after validation", "")
    return text, f", not {show(item.get('input'))}" if text.startswith("should be") else ""


#: YAML's words for types that pydantic calls by JSON's.
_KINDS = {
    "should be an object": "should be a mapping of options",
    "should be a valid array": "should be a list",
    "should be a valid dictionary": "should be a mapping",
}


def show(value: Any) -> str:
    """Returns a plain value for a message: as YAML, but strings always in quotes, and shortened."""
    text = repr(value) if isinstance(value, str) else dump_value(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
