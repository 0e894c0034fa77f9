"""Reads YAML into plain data in which every value knows where it stands, and writes plain data as YAML.

PyYAML's own rules take `1e-4` for a string and `on` for a boolean; here the core schema of YAML 1.2 holds, duplicate
keys are an error, and there are no tags but the plain ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..contracts.errors import ConfigError

#: The keys that lead to a value: `("optimizer", "lr")`, `("views", "0", "blur")`.
Key = tuple[str, ...]


@dataclass
class Document:
    """Plain data (dicts, lists, strings, numbers, booleans, None) and where each of its values was written."""

    data: dict[str, Any]
    where: dict[Key, str] = field(default_factory=dict)

    def origin(self, key: Key) -> str:
        """Returns `file:line` or `command line` for a key, or for the nearest part of it that was written."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.where:
                return self.where[key[:length]]
        return "config"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2's core schema."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}


_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_FLOAT = re.compile(rf"^(?:{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_PREFIX = "tag:yaml.org,2002:"
for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(_PREFIX + _tag, _pattern, None)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either version of YAML would take for something else than a string."""


_OURS: list[Any] = _Loader.yaml_implicit_resolvers[None]
_RULES: dict[Any, Any] = yaml.SafeDumper.yaml_implicit_resolvers
_Dumper.yaml_implicit_resolvers = {first: [*_OURS, *rules] for first, rules in _RULES.items()} | {None: _OURS}


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar(_PREFIX + "float", text)


_Dumper.add_representer(float, _represent_float)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Writes plain data as YAML that `read_file` reads back to the same values."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True
    )


def read_file(path: Path) -> Document:
    """Reads a YAML file whose top is a mapping.

    Raises:
        ConfigError: if it cannot be read or parsed; every duplicate key is listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: is a directory, not a YAML file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not a text file in UTF-8 (byte {error.start})"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from None
    document = parse(text, str(path), numbered=True)
    if document.data is None:
        raise ConfigError([f"{path}: is empty"])
    if not isinstance(document.data, dict):
        raise ConfigError([f"{path}:1: a config is a mapping of keys to values, not a {_kind(document.data)}"])
    return document


def parse(text: str, source: str, *, numbered: bool = False) -> Document:
    """Parses YAML text; `source` (with the line, if `numbered`) is what errors and origins call it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark is not None and numbered else source
        raise ConfigError([f"{place}: not valid YAML: {error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{source}: not valid YAML: {str(error).splitlines()[0]}"]) from None
    reader = _Reader(source, numbered)
    data = reader.value(node, ()) if node is not None else None
    if reader.problems:
        raise ConfigError(reader.problems)
    return Document(data, reader.where)  # type: ignore[arg-type]  # read_file makes sure of the mapping


class _Reader:
    """Turns nodes into plain data, noting lines and collecting problems."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source, self.numbered = source, numbered
        self.where: dict[Key, str] = {}
        self.problems: list[str] = []
        self.open: set[int] = set()
        self.count = 0

    def place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.where.setdefault(key, self.place(node))
        self.count += 1
        if id(node) in self.open or self.count > 100_000:
            self.problems.append(f"{self.place(node)}: {'.'.join(key)}: an alias that contains itself, or far too many")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(child, (*key, str(index))) for index, child in enumerate(node.value)]
            return self.scalar(node, key)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, child in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self.problems.append(f"{self.place(name_node)}: a key must be a word or a number")
                continue
            name = name_node.value
            if name in result:
                first = self.where[(*key, name)].rpartition(":")[2]
                self.problems.append(
                    f"{self.place(name_node)}: {'.'.join((*key, name))}: written twice (first in line {first})"
                )
                continue
            self.where[(*key, name)] = self.place(name_node)
            result[name] = self.value(child, (*key, name))
        return result

    def scalar(self, node: yaml.Node, key: Key) -> Any:
        text, tag = node.value, node.tag.removeprefix(_PREFIX)
        if tag == "str":
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "int" and _INT.match(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text[2:] if base != 10 else text, base)
        if tag == "float" and (_FLOAT.match(text) or _INT.match(text)):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self.problems.append(f"{self.place(node)}: {'.'.join(key)}: the tag {node.tag} is not supported")
        return None


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean"}.get(type(value), "number")
