"""Assembles a configuration from files (`extends`) and the command line's overrides.

Mappings are merged, lists are replaced, null resets a value to its default, and a different `name` drops the options of
the old one. An override that names another method drops the sections that belong to the old one, too (`recipe.py`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sslcli.contracts.errors import ConfigError
from sslcli.storage import expanded

from .document import MOST_LEVELS, Document, Key, dump_value, read_file
from .examples import example, locate, shown
from .override_values import read_value
from .schema import PLUGIN_SECTIONS

_COMMAND_LINE = "command line"
#: The sections that belong to a method.
RECIPE = ("views", "optimizer", "schedule")


def read_config(path: Path | None, overrides: list[str], *, follow: bool = True) -> Document:
    """Reads a config file, or an example by its name, with everything it extends; applies overrides (`key.path=value`).

    None stands for no file: the overrides are all there is. Without `follow` the file's sections stay if an override
    names another method.

    Raises UserError if there is none, a file cannot be read, or overrides are malformed.
    """
    document = Document({}, {(): _COMMAND_LINE}) if path is None else _read_with_bases(locate(path), ())
    if follow:
        override(document, lambda each: apply_overrides(each, overrides))
    else:
        apply_overrides(document, overrides)
    return document


def override(document: Document, change: Callable[[Document], None]) -> None:
    """Applies overrides; if they name another method, the old one's sections have only what the overrides say.

    The size of the views stays: like data and backbone, it does not belong to the method.
    """
    before = copy.deepcopy(document)
    change(document)
    old, new = (_method(each) for each in (before, document))
    if old is None or new is None or old == new:
        return
    alone = copy.deepcopy(before)
    for section in RECIPE:
        old_section = alone.data.pop(section, None)
        adopt(alone, Document({}), (section,))
        if section == "views" and isinstance(old_section, dict) and old_section.get("size") is not None:
            alone.data[section] = {"size": old_section["size"]}
            adopt(alone, before, (section, "size"))
    change(alone)
    document.replaced = (before, Document(document.data, document.where))
    document.data, document.where = alone.data, alone.where


def _method(document: Document) -> Any:
    section = document.data.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> Document:
    resolved = path.resolve()
    if resolved in chain:
        circle = " extends ".join(p.name for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError([f"{path}: extends itself: {circle}"])
    if len(chain) > MOST_LEVELS:
        raise ConfigError([f"{path}: extends: more than {MOST_LEVELS} files, each of which extends the next"])
    document = read_file(path, shown(path))
    base = document.data.pop("extends", None)
    _expand_shorthands(document)
    if base is None:
        return document
    origin = document.origin(("extends",))
    if not isinstance(base, str):
        raise ConfigError([f"{origin}: extends: should be the name of one YAML file"])
    base_path = path.parent / expanded(base)
    base_path = base_path if base_path.is_file() else example(Path(base)) or base_path
    if not base_path.is_file():
        raise ConfigError([f"{origin}: extends: no such file: {base_path}"])
    merged = _read_with_bases(base_path, (*chain, resolved))
    merge(merged, document)
    return merged


def _expand_shorthands(document: Document) -> None:
    """`method: simclr` is short for `method: {name: simclr}`, `views: byol` for `views: {preset: byol}`."""
    for name in (*PLUGIN_SECTIONS, "views"):
        value = document.data.get(name)
        if isinstance(value, str):
            document.data[name] = _long(name, value)
            document.where[(name, *document.data[name])] = document.where[(name,)]


def _long(section: str, value: str) -> dict[str, Any]:
    return {"preset" if section == "views" else "name": value}


def merge(base: Document, over: Document) -> None:
    """Merges `over` into `base`, in place."""
    _expand_shorthands(over)
    base.data = _merged(base, over, base.data, over.data, ())


def _merged(base: Document, over: Document, old: Any, new: Any, key: Key) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)) or _renamed(old, new, key):
        adopt(base, over, key)
        return new
    result = old | {name: _merged(base, over, old.get(name), value, (*key, name)) for name, value in new.items()}
    if key in over.where:
        base.where[key] = over.where[key]
    return result


def _renamed(old: dict[str, Any], new: dict[str, Any], key: Key) -> bool:
    """Whether `new` names another plugin (or preset) than `old`, or phases, to which the old options don't belong."""
    if key == ("views",) and new.get("phases") is not None:
        return True
    if key == ("views",) and old.get("phases") is not None:
        return False  # phases end by `phases: null` only, and cannot be combined with what else is set
    views = key == ("views",) or (key[:2] == ("views", "phases") and key[3:] == ("views",))
    tag = "name" if len(key) == 1 and key[0] in PLUGIN_SECTIONS else "preset" if views else None
    return tag is not None and tag in new and new[tag] != old.get(tag)


def adopt(base: Document, over: Document, key: Key) -> None:
    """Replaces the origins of a key and of everything below it by those in `over`."""
    origins = {k: origin for k, origin in over.where.items() if k[: len(key)] == key}
    base.where = {k: origin for k, origin in base.where.items() if k[: len(key)] != key}
    if origins:
        base.where[key] = next(iter(origins.values()))  # `optimizer.name=adamw` creates the section
    base.where.update(origins)


def apply_overrides(document: Document, overrides: list[str]) -> None:
    """Applies `key.path=value` arguments, the values in YAML; ConfigError with every invalid argument.

    Those that name a plugin or a preset come first, wherever they stand: `data.root=photos data.name=images` is both.
    """
    problems: list[str] = []
    for text in sorted(overrides, key=lambda text: not _names_a_plugin(text)):
        try:
            _apply(document, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Turns Python values by dotted key into `key.path=value` arguments."""
    plain = json.loads(json.dumps(dict(values), default=str))  # tuples become lists, and paths strings
    return [f"{key}={dump_value(value)}" for key, value in plain.items()]


def _names_a_plugin(text: str) -> bool:
    path, _, value = text.partition("=")
    section, _, rest = path.partition(".")
    names = section in (*PLUGIN_SECTIONS, "views") and rest in ("", "name", "preset")
    return names and not value.startswith(("{", "[")) and value.lower() not in ("", "~", "null")


def _apply(document: Document, text: str) -> None:
    path, equals, value_text = text.partition("=")
    key = tuple(path.split("."))
    if not equals or not all(key):
        raise ConfigError([f"{_COMMAND_LINE}: {text!r}: should look like key.path=value (optimizer.lr=0.3)"])
    if len(key) > MOST_LEVELS:
        raise ConfigError([f"{_COMMAND_LINE}: {path[:40]}…: nested more than {MOST_LEVELS} levels deep"])
    if key[0] == "extends":
        raise ConfigError([f"{_COMMAND_LINE}: extends: is only allowed in a file"])
    value = read_value(value_text, key, document.data, f"{_COMMAND_LINE}: {path}")
    if len(key) == 1 and key[0] in (*PLUGIN_SECTIONS, "views") and isinstance(value.data, str):
        value.data = _long(key[0], value.data)
    parent = _parent(document, key, path)
    over = Document({}, {(*key, *part): _COMMAND_LINE for part in value.where})
    if isinstance(parent, list):
        parent[_step(parent, key[-1], key)] = value.data
        adopt(document, over, key)
    else:
        updated = _merged(document, over, parent, {key[-1]: value.data}, key[:-1])
        parent.clear()
        parent.update(updated)
    document.where[key] = _COMMAND_LINE
    for depth in range(1, len(key)):
        document.where.setdefault(key[:depth], _COMMAND_LINE)  # a section that it creates


def _parent(document: Document, key: Key, path: str) -> Any:
    """The mapping or list that contains a key's last part; created if there is none."""
    parent: Any = document.data
    for depth, part in enumerate(key[:-1], start=1):
        here = key[:depth]
        step = _step(parent, part, here)
        if parent[step] is None:
            parent[step] = {}
        parent = parent[step]
        if not isinstance(parent, dict | list):
            raise ConfigError([f"{_COMMAND_LINE}: {path}: {'.'.join(here)} is {parent!r}, not a mapping or a list"])
    return parent


def _step(parent: Any, part: str, key: Key) -> Any:
    """What finds a key's part in a mapping, to which it is added if it is missing, or in a list."""
    if isinstance(parent, dict):
        parent.setdefault(part)
        return part
    if not part.isdecimal() or int(part) >= len(parent):
        problem = f"should be an index from 0 to {len(parent) - 1}" if parent else "the list is empty"
        raise ConfigError([f"{_COMMAND_LINE}: {'.'.join(key)}: {problem}"])
    return int(part)
