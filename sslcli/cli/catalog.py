"""Meaning and options of plugins without importing them, which would import torch: those of the built-in ones are in
`catalog.json`, which `docs/generate.py` writes; a package's meaning is read from its source."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

from sslcli.config.rows import option_rows, summary_of
from sslcli.plugins import GROUPS, FoundPlugin, choose, find, load, load_found

FILE = Path(__file__).with_name("catalog.json")
PACKAGE = "sslcli"

Rows = list[dict[str, Any]]


@functools.cache
def read() -> dict[str, Any]:
    """Returns the file: `plugins` by group and name, with `summary` and `options`; and the rows of `views`."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def build() -> dict[str, Any]:
    """Returns what the file should hold; imports every built-in plugin."""
    return {"plugins": {group: build_group(group) for group in GROUPS}, "views": view_rows()}


def build_group(group: str) -> dict[str, Any]:
    """Returns `summary` and `options` of a group's built-in plugins by name; imports them."""
    return {
        plugin.name: {"summary": summary_of(load_found(plugin).__doc__), "options": options_of(group, plugin.name)}
        for plugin in find(group)
        if plugin.package == PACKAGE
    }


def options_of(group: str, name: str) -> Rows:
    """Returns the options of a plugin, which is imported; for a provider of many, those that any of them has."""
    provider: Any = load_found(choose(group, name.partition("/")[0]))
    many = "/" not in name and hasattr(provider, "names")
    classes = [provider.get(each) for each in sorted(provider.names())] if many else [load(group, name)]
    return list({row["name"]: row for cls in classes for row in option_rows(cls.Options)}.values())


def view_rows() -> Rows:
    """Returns the keys of a `views:` section, besides the options of its preset."""
    from sslcli.config.views_section import CROP_KEYS, DEFAULT_ORDER

    ours = [each for each in find("augmentations") if each.package == PACKAGE]
    presets = [each.name for each in ours if hasattr(load_found(each), "views")]
    crop = {row["name"]: row for row in options_of("augmentations", "crop")}
    rows = [
        _row("preset", "str", "The views, by name.", presets),
        _row("size", "int", "Side of the views in pixels; by default the dataset's own."),
        _row("phases", "list", "Views that change in the run: a list of `views` and `until` when they last."),
        *({**crop[option], "name": key, "default": None} for key, option in CROP_KEYS.items()),
    ]
    for name in DEFAULT_ORDER:
        about = summary_of(load("augmentations", name).__doc__)
        rows.append(_row(name, "float | mapping", f"{about} A probability (0: off), or a mapping of these options."))
        rows += [{**row, "name": f"{name}.{row['name']}"} for row in options_of("augmentations", name)]
    return [
        *rows,
        _row("0", "mapping", f"Changes of the first view alone (`1`: the second, …): {_OF_A_VIEW}."),
    ]


_OF_A_VIEW = "the keys above, `count`, `order` (operations that come first), or `operations`, a list that replaces them"


def _row(name: str, kind: str, about: str, choices: list[Any] | None = None) -> dict[str, Any]:
    row = {"name": name, "type": kind, "required": False, "default": None, "help": about, "choices": choices or []}
    return row | {"resume": "fixed"}


def summary(plugin: FoundPlugin) -> str:
    """Returns one sentence about a plugin that is not imported for it; empty if its source has none."""
    if plugin.package == PACKAGE and (
        known := read()["plugins"][plugin.group.removeprefix("sslcli.")].get(plugin.name)
    ):
        return str(known["summary"])
    try:
        module, _, name = plugin.target.partition(":")
        tree = ast.parse(_source(module))
    except Exception:  # a broken package affects nothing else; `ssl list --check` reports it
        return ""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return summary_of(ast.get_docstring(found[0])) if found else ""


def _source(module: str) -> bytes:
    """The source of a module; unlike `find_spec` of its full name, this imports no package around it."""
    top, *rest = module.split(".")
    spec: Any = importlib.util.find_spec(top)
    for part in rest:
        spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return Path(spec.origin).read_bytes()


def common_options(group: str) -> Rows:
    """Returns the options that all built-in plugins of a group have; a default that is not the same is `None`."""
    first, *others = ([{**row} for row in each["options"]] for each in read()["plugins"][group].values())
    for rows in others:
        named = {row["name"]: row for row in rows}
        first = [row for row in first if row["type"] == named.get(row["name"], row | {"type": ""})["type"]]
        for row in first:
            row["default"] = row["default"] if row["default"] == named[row["name"]]["default"] else None
    return first
