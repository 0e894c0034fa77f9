"""Reads YAML into plain data and the file and line of every value, and writes plain data as YAML.

PyYAML's own rules read `1e-4` as a string and `on` as a boolean; here the core schema of YAML 1.2 applies, duplicate
keys are errors, and only the tags of plain data are allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sslcli.contracts.errors import ConfigError
from sslcli.storage import read_regular

#: The keys that lead to a value: `("optimizer", "lr")`, `("views", "0", "blur")`.
Key = tuple[str, ...]


#: A file with more than this is a mistake or an attack.
_MOST_BYTES, _MOST_VALUES, _MOST_DIGITS, MOST_LEVELS = 1 << 20, 100_000, 1000, 50
_TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"


@dataclass
class Document:
    """Plain data (dicts, lists, strings, numbers, booleans, None) and where each value comes from."""

    data: dict[str, Any]
    where: dict[Key, str] = field(default_factory=dict)
    #: If an override names another method: the document before it, and with it all that the file says.
    replaced: tuple[Document, Document] | None = None

    def origin(self, key: Key) -> str:
        """Returns `file:line` or `command line` for a key, or for the longest part of it that exists."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.where:
                return self.where[key[:length]]
        return "config"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # the stubs declare an instance variable


_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_PREFIX = "tag:yaml.org,2002:"
#: The text of each type of scalar, and the function that reads it.
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), lambda text: None),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), lambda text: text.lower() == "true"),
    "int": (
        re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
        lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    ),
    "float": (
        re.compile(rf"^(?:{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
}
for _tag, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _tag, _pattern, None)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes strings which either version of YAML would read as something else."""


_OURS: list[Any] = _Loader.yaml_implicit_resolvers[None]
_RULES: dict[Any, Any] = yaml.SafeDumper.yaml_implicit_resolvers
_Dumper.yaml_implicit_resolvers = {first: [*_OURS, *rules] for first, rules in _RULES.items()} | {None: _OURS}


_BREAKS = re.compile("[\n\r\x85\u2028\u2029]")


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Escape all line breaks: single quotes would fold them, and lose a NEL.
    return dumper.represent_scalar(_PREFIX + "str", value, style='"' if _BREAKS.search(value) else None)


_Dumper.add_representer(str, _represent_str)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Returns plain data as YAML that `read_file` reads back to the same values."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True
    )


def dump_value(value: Any) -> str:
    """Returns one plain value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").rstrip("\n")


def read_file(path: Path, name: str = "") -> Document:
    """Reads a YAML file that holds a mapping; ConfigError if it cannot be read or parsed, with every duplicate key.

    Messages call it `name`, by default its path.
    """
    name = name or str(path)
    try:
        text = read_regular(path, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigError([f"{name}: is not a text file in UTF-8 (byte {error.start})"]) from None
    except OSError as error:
        raise ConfigError([f"{name}: {(error.strerror or str(error)).lower()}"]) from None
    document = parse(text, name, numbered=True)
    if document.data is None:
        raise ConfigError([f"{name}: is empty"])
    if not isinstance(document.data, dict):
        raise ConfigError([f"{name}:1: a config is a mapping of keys to values"])
    return document


def parse(text: str, source: str, *, numbered: bool = False) -> Document:
    """Parses YAML text; errors and origins name `source`, with the line number if `numbered`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark is not None and numbered else source
        raise ConfigError([f"{where}: not valid YAML: {error.problem or error.context}"]) from None
    except RecursionError:
        raise ConfigError([f"{source}: {_TOO_DEEP}"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{source}: not valid YAML: {str(error).splitlines()[0]}"]) from None
    reader = _Reader(source, numbered)
    data = reader.value(node, ()) if node is not None else None
    if reader.problems:
        raise ConfigError(reader.problems)
    return Document(data, reader.where)  # type: ignore[arg-type]  # read_file checks that it is a mapping


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag


class _Reader:
    """Turns nodes into plain data, and collects lines and problems."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source, self.numbered = source, numbered
        self.where: dict[Key, str] = {}
        self.problems: list[str] = []
        self.open: set[int] = set()
        self.count = 0

    def origin(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source

    def complain(self, node: yaml.Node, key: Key, message: str) -> Any:
        """Adds a problem; returns None, which stands for the value."""
        self.problems.append(": ".join([self.origin(node), *([".".join(key)] if key else []), message]))

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.where.setdefault(key, self.origin(node))
        self.count += 1
        if self.count > _MOST_VALUES:
            self.complain(node, key, f"more than {_MOST_VALUES:,} values; are there aliases of aliases?")
            raise ConfigError(self.problems)
        if len(key) > MOST_LEVELS:
            self.complain(node, key[:1], _TOO_DEEP)
            raise ConfigError(self.problems)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, key)
        if id(node) in self.open:
            return self.complain(node, key, "an alias that contains itself")
        if node.tag not in (_PREFIX + "map", _PREFIX + "seq"):
            return self.complain(node, key, f"the tag {_short(node.tag)} is not supported")
        self.open.add(id(node))
        data: Any
        if isinstance(node, yaml.MappingNode):
            data = self.mapping(node, key)
        else:
            data = [self.value(child, (*key, str(index))) for index, child in enumerate(node.value)]
        self.open.remove(id(node))
        return data

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, child in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self.complain(name_node, key, "a key must be a word or a number")
                continue
            name = name_node.value
            child_key = (*key, name)
            if name in result:
                first = f" (first on line {self.where[child_key].rpartition(':')[2]})" if self.numbered else ""
                self.complain(name_node, child_key, f"duplicate key{first}")
                continue
            self.where[child_key] = self.origin(name_node)
            result[name] = self.value(child, child_key)
        return result

    def scalar(self, node: yaml.Node, key: Key) -> Any:
        text, tag = node.value, node.tag.removeprefix(_PREFIX)
        if tag == "str":
            return text
        if tag not in _SCALARS:
            return self.complain(node, key, f"the tag {_short(node.tag)} is not supported")
        pattern, read = _SCALARS[tag]
        if pattern.match(text) and not (tag == "int" and len(text) > _MOST_DIGITS):
            return read(text)
        return self.complain(node, key, f"{text[:40]!r} is not a valid {tag}")
