"""What can be set, without importing what has it, which would import torch: sections and built-in plugins are in
`catalog.json`, which `docs/generate.py` writes; what another package's plugin means is read from its source."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sslcli.plugins import GROUPS, FoundPlugin, choose, find, load, load_found, member_names

FILE = Path(__file__).with_name("catalog.json")
PACKAGE = "sslcli"

Rows = list[dict[str, Any]]


@functools.cache
def read() -> dict[str, Any]:
    """Returns the file's data.

    `plugins`, by group and name: `summary`, `options`, whether it is the `default`; a method's `year`, `needs` and
    `views` too. `sections`, by name: `summary`, `group` of its plugins (or null) and `options`, those that all built-in
    plugins of the group have. `evaluation`: the options of every evaluator.
    """
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def build() -> dict[str, Any]:
    """Returns what the file should hold; imports every built-in plugin."""
    from sslcli.config.rows import option_rows
    from sslcli.config.schema import PLUGIN_SECTIONS, SECTION_HELP, CheckpointOptions, TrainingOptions
    from sslcli.evaluation.targets import ShownOptions

    plugins = {group: _built_in(group) for group in GROUPS}
    groups = {**PLUGIN_SECTIONS, "views": "augmentations", "callbacks": "callbacks"}
    options = {"training": option_rows(TrainingOptions), "checkpoints": option_rows(CheckpointOptions)}
    options |= {
        section: _common([each["options"] for each in plugins[group].values()]) for section, group in groups.items()
    }
    options["views"] = _view_rows(plugins["augmentations"])
    sections = {
        name: {"summary": about, "group": groups.get(name), "options": options.get(name, [])}
        for name, about in SECTION_HELP.items()
    }
    return {"plugins": plugins, "sections": sections, "evaluation": option_rows(ShownOptions)}


def _built_in(group: str) -> dict[str, Any]:
    from sslcli.config.rows import summary_of
    from sslcli.config.schema import DEFAULT_CALLBACKS, DEFAULTS, PLUGIN_SECTIONS

    defaults = {PLUGIN_SECTIONS[section]: [value["name"]] for section, value in DEFAULTS.items()}
    defaults |= {"callbacks": [*DEFAULT_CALLBACKS], "evaluators": ["knn"]}
    return {
        plugin.name: {
            "summary": summary_of(load_found(plugin).__doc__),
            "default": plugin.name in defaults.get(group, []),
            **_facts(group, load_found(plugin)),
            "options": options_of(group, plugin.name),
        }
        for plugin in find(group)
        if plugin.package == PACKAGE
    }


def _facts(group: str, cls: Any) -> dict[str, Any]:
    """What a table of methods has besides their meaning: year of the paper, needs, number of views; null or empty where
    a class does not say it, or in no way that can be shown."""
    if group != "methods":
        return {}
    found = {
        name: getattr(cls, name, None) for name in ("year", "needs", "needs_labels", "view_count", "minimum_views")
    }
    year, needs, exactly, least = (found[name] for name in ("year", "needs", "view_count", "minimum_views"))
    if not (isinstance(needs, tuple) and all(isinstance(each, str) for each in needs)):
        needs = None
    labels = ("labels",) if found["needs_labels"] is True else ()
    views = f"{exactly}" if type(exactly) is int else f"{least}+" if type(least) is int else ""
    return {
        "year": year if type(year) is int and year > 0 else None,
        "needs": [*labels, *needs] if needs is not None else [*labels] or None,
        "views": views,
    }


def options_of(group: str, name: str) -> Rows:
    """Returns the options of a plugin, which is imported; for a provider of many, those that any of them has."""
    from sslcli.config.rows import option_rows

    provider: Any = load_found(choose(group, name.partition("/")[0]))
    many = "/" not in name and hasattr(provider, "names")
    classes = [load(group, f"{name}/{each}") for each in member_names(provider, name)] if many else [load(group, name)]
    return list({row["name"]: row for cls in classes for row in option_rows(cls.Options)}.values())


def _common(options: list[Rows]) -> Rows:
    """The options that all of these have; a default that is not the same everywhere is null."""
    first, *others = ({row["name"]: row for row in rows} for rows in options)
    common = []
    for name, row in first.items():
        same = [rows[name] for rows in others if name in rows and rows[name]["type"] == row["type"]]
        if len(same) == len(others):
            common.append(
                {**row, "default": row["default"] if all(row["default"] == s["default"] for s in same) else None}
            )
    return common


def _view_rows(augmentations: dict[str, Any]) -> Rows:
    """The keys of a `views:` section, besides the options of its preset."""
    from sslcli.config.views_section import CROP_KEYS, DEFAULT_ORDER

    presets = [name for name in augmentations if hasattr(load("augmentations", name), "views")]
    crop = {row["name"]: row for row in augmentations["crop"]["options"]}
    rows = [
        _row("preset", "str", "The views, by name.", presets),
        _row("size", "int", "Side of the views in pixels; by default the dataset's own."),
        _row("phases", "list", "Views that change in the run: a list of `views` and `until` when they last."),
        *({**crop[option], "name": key, "default": None} for key, option in CROP_KEYS.items()),
    ]
    for name in DEFAULT_ORDER:
        about = augmentations[name]["summary"]
        rows.append(_row(name, "float | mapping", f"{about} A probability (0: off), or a mapping of these options."))
        rows += [{**row, "name": f"{name}.{row['name']}"} for row in augmentations[name]["options"]]
    of_one = "the keys above, `count`, `order` (operations that come first), or `operations`, a list that replaces them"
    return [*rows, _row("0", "mapping", f"Changes of the first view alone (`1`: the second, …): {of_one}.")]


def _row(name: str, kind: str, about: str, choices: list[Any] | None = None) -> dict[str, Any]:
    row = {"name": name, "type": kind, "required": False, "default": None, "help": about, "choices": choices or []}
    return row | {"resume": "fixed"}


def known(plugin: FoundPlugin) -> dict[str, Any]:
    """Returns what the file has about a plugin; empty for those of other packages."""
    group = plugin.group.removeprefix("sslcli.")
    found: dict[str, Any] = read()["plugins"][group].get(plugin.name, {}) if plugin.package == PACKAGE else {}
    return found


def about(plugin: FoundPlugin) -> dict[str, Any]:
    """Returns the `summary` of a plugin, one sentence, and a method's facts, without importing it; empty if its source
    does not say them."""
    group = plugin.group.removeprefix("sslcli.")
    if in_file := known(plugin):
        return {key: each for key, each in in_file.items() if key not in ("options", "default")}
    empty = {"summary": "", **_facts(group, None)}
    try:
        module, _, name = plugin.target.partition(":")
        tree = ast.parse(_source(module))
    except Exception:  # a broken package affects nothing else; `ssl list --check` reports it
        return empty
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        return empty
    from sslcli.config.rows import summary_of

    return {"summary": summary_of(ast.get_docstring(found[0])), **_facts(group, _constants(found[0]))}


def _constants(node: ast.ClassDef) -> SimpleNamespace:
    """What a class's body sets to a constant, by name."""
    found = {}
    for each in node.body:
        match each:
            case ast.Assign(targets=[ast.Name(name)], value=value) | ast.AnnAssign(target=ast.Name(name), value=value):
                with contextlib.suppress(ValueError, TypeError):
                    found[name] = ast.literal_eval(value)  # type: ignore[arg-type]  # None for a mere annotation
    return SimpleNamespace(**found)


def _source(module: str) -> bytes:
    """The source of a module; unlike `find_spec` of its full name, this imports no package around it."""
    top, *rest = module.split(".")
    spec: Any = importlib.util.find_spec(top)
    for part in rest:
        spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return Path(spec.origin).read_bytes()
