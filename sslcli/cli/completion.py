"""What the shell completes: plugin names, configs, and overrides (`training.precision=bf16`). It imports no plugin of
this package, and of others only one that is chosen: the options of built-in ones are in the catalog.

A shell may split words at `=` (bash does): then what is completed is the value alone, and the key is two words before.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from sslcli.config import examples
from sslcli.contracts.errors import UserError
from sslcli.foreign import failures, only_results
from sslcli.plugins import GROUPS, choose, find

from . import catalog

#: What may follow, and what it means.
Words = list[tuple[str, str]]
#: Values that a shell takes as they are.
_PLAIN = re.compile(r"[\w./+,\[\]-]+")
#: What a shell obeys within a word.
_OBEYED = frozenset("$`;&|<>()'\"\\!")


def plugins(group: str, *more: str) -> Callable[[str], Words]:
    """Returns a completion of a group's names, and of further words."""

    def complete(incomplete: str) -> Words:
        return [*_names(group), *((word, "") for word in more)]

    return complete


def _names(group: str) -> Words:
    return [(plugin.name, catalog.about(plugin)["summary"]) for plugin in find(group)]


def devices(incomplete: str) -> Words:
    """Completes --device."""
    return [("auto", "CUDA if available, else the CPU"), ("cpu", ""), ("cuda", "")]


def groups(incomplete: str) -> Words:
    """Completes GROUP of `ssl list`."""
    sections = {name: each["summary"] for name, each in catalog.read()["sections"].items()}
    return [
        *((name, f"every {group.noun}") for name, group in GROUPS.items() if name not in sections),
        *sections.items(),
        ("configs", "example configs"),
    ]


def members(ctx: typer.Context, incomplete: str) -> Words:
    """Completes NAME of `ssl list GROUP NAME`."""
    name = ctx.params.get("group") or ""
    section = catalog.read()["sections"].get(name, {"group": name, "options": []})
    if section["group"] in GROUPS:
        return _names(section["group"])
    return [(row["name"], row["help"]) for row in section["options"]]


def configs(incomplete: str) -> Words:
    """Completes CONFIG: example configs by name, YAML files, folders, and the overrides that can stand in its place."""
    found = [(name, "example config") for name in examples.names() if name.startswith(incomplete)]
    found += _paths(incomplete, lambda path: path.suffix in (".yaml", ".yml"))
    return found + (_complete(_config_rows([]), [], incomplete) if incomplete else [])


def overrides(ctx: typer.Context, incomplete: str) -> Words:
    """Completes KEY=VALUE of `ssl train` and `ssl bench`."""
    words = _joined([str(word) for word in (ctx.params.get("config"), *(ctx.params.get("overrides") or [])) if word])
    return _complete(_config_rows(words), words, incomplete)


def evaluation(ctx: typer.Context, incomplete: str) -> Words:
    """Completes a target or an option of `ssl eval`."""
    rows = [*_options("evaluators", str(ctx.params.get("method") or "knn")), *catalog.read()["evaluation"]]
    rows += _under("data", [*catalog.read()["sections"]["data"]["options"]])
    return _with_targets(ctx, rows, incomplete, _names("backbones"))


def exported(ctx: typer.Context, incomplete: str) -> Words:
    """Completes the run or an option of `ssl export`."""
    return _with_targets(ctx, _options("exporters", str(ctx.params.get("name"))), incomplete, [])


def _with_targets(ctx: typer.Context, rows: catalog.Rows, incomplete: str, more: Words) -> Words:
    given = (ctx.params.get("target"), *(ctx.params.get("words") or ctx.params.get("overrides") or []))
    known, words = {row["name"]: row for row in rows}, _joined([str(word) for word in given if word])
    found = _complete(known, words, incomplete)
    if "=" in incomplete or _split(known, words, incomplete):
        return found
    options = found if words or incomplete else []  # a run comes first
    return [*options, *(more if incomplete else []), *_paths(incomplete, lambda path: True)]


def _split(rows: Mapping[str, Any], words: list[str], incomplete: str) -> bool:
    """Whether the word before is the key of this value; of one that is still empty, the shell doesn't show the `=`."""
    if not words or words[-1].endswith("=") or incomplete:
        return bool(words) and words[-1].endswith("=")
    section, dot, _ = words[-1].partition(".")
    of_other_plugin = bool(dot) and section in catalog.read()["sections"] and not Path(words[-1]).exists()
    return words[-1] in rows or of_other_plugin


def _complete(rows: Mapping[str, dict[str, Any]], words: list[str], incomplete: str) -> Words:
    """Completes `key=value`, after `words`: the key, or of a key that is there the value."""
    if _split(rows, words, incomplete):
        return _values(rows.get(words[-1].removesuffix("="), {}))
    key, equals, _ = incomplete.partition("=")
    if equals:
        return [(f"{key}={value}", about) for value, about in _values(rows.get(key, {}))]
    found = [name for name in rows if name.startswith(incomplete)]
    if len(found) == 1:  # shown with values: to a word that is the only one a shell would add a space
        (name,) = found
        return [(f"{name}=", rows[name]["help"]), *((f"{name}={value}", about) for value, about in _values(rows[name]))]
    sections = dict.fromkeys(name.partition(".")[0] for name in found)
    if "." in incomplete or len(sections) == 1:
        return [(f"{name}=", rows[name]["help"]) for name in found]
    whole = [(f"{name}=", rows[name]["help"]) for name in sections if name in rows]  # all keys are too many to read
    return whole + [(f"{name}.", _about(name)) for name in sections if any(key.startswith(f"{name}.") for key in found)]


def _about(section: str) -> str:
    return str(catalog.read()["sections"].get(section, {}).get("summary", ""))


def _values(row: dict[str, Any]) -> Words:
    """The values of an option that has few, and its default."""
    if "words" in row:
        return list(row["words"])
    default = row.get("default")
    known = {_text(each): "" for each in row.get("choices", [])} | (
        {} if default is None else {_text(default): "default"}
    )
    return [(text, about) for text, about in known.items() if _PLAIN.fullmatch(text)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _config_rows(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What an override can set, by key, given the config and the overrides before it."""
    chosen = _chosen(words)
    rows: list[dict[str, Any]] = []
    for section, each in catalog.read()["sections"].items():
        group = each["group"]
        if section == "callbacks":
            for name, about in _names(group):
                rows.append({"name": f"callbacks.{name}", "help": about, "words": [("null", "off")]})
                rows += _under(f"callbacks.{name}", _options(group, name, own=False))
        elif section == "views":
            rows += _under("views", [*each["options"], *_options(group, chosen.get("views", ""))])
        elif group is not None:
            named = {"help": each["summary"], "words": _names(group)}
            rows += [{"name": section, **named}, {"name": f"{section}.name", **named}]
            name = chosen.get(section, "")
            rows += _under(section, _options(group, name) if name else each["options"])
        else:
            rows += _under(section, each["options"]) or [{"name": section, "help": each["summary"]}]
    return {row["name"]: row for row in rows}


def _under(section: str, rows: catalog.Rows) -> catalog.Rows:
    return [{**row, "name": f"{section}.{row['name']}"} for row in rows]


def _options(group: str, name: str, *, own: bool = True) -> catalog.Rows:
    """The options of a plugin; with `own` false, none of one that would have to be imported."""
    try:
        plugin = choose(group, name.partition("/")[0])
        known = catalog.known(plugin)
        if known or not own:
            return known.get("options", [])
        with failures(name), only_results():
            return catalog.options_of(group, name)
    except UserError:  # no such plugin, or a broken one: the command reports it
        return []


def _chosen(words: Iterable[str]) -> dict[str, str]:
    """The plugin of each section, and the views' preset, as the config and the overrides among these words name it."""
    from sslcli.config.document import parse

    sections = catalog.read()["sections"]
    found = {section: name for section, each in sections.items() for name in _default(section, each["group"])}
    for word in words:
        key, equals, text = word.partition("=")
        section, _, part = key.partition(".")
        try:
            if not equals:
                found |= _in_file(Path(word))
            elif section in sections and part in ("", "name", "preset"):
                value = parse(text, "").data
                found |= {section: value} if part and isinstance(value, str) else _named({section: value})
        except Exception:  # the command reports it
            continue
    return found


def _default(section: str, group: str | None) -> list[str]:
    known = catalog.read()["plugins"].get(group, {}) if section in ("backbone", "schedule") else {}
    return [name for name, each in known.items() if each["default"]]


def _in_file(path: Path, depth: int = 0) -> dict[str, str]:
    """What a config and those that it extends name."""
    from sslcli.config.document import read_file

    path = Path(os.path.expanduser(path))
    path = next((each for each in (path / "config.yaml", path) if each.is_file()), examples.example(path) or path)
    data = read_file(path).data
    base = data.get("extends")
    return (_in_file(path.parent / base, depth + 1) if isinstance(base, str) and depth < 9 else {}) | _named(data)


def _named(data: dict[str, Any]) -> dict[str, str]:
    found = {}
    for section, value in data.items():
        name = value.get("preset" if section == "views" else "name") if isinstance(value, dict) else value
        if isinstance(name, str):
            found[section] = name
    return found


def _joined(words: list[str]) -> list[str]:
    """Words that a shell has split at `=` or `:`, together again."""
    joined: list[str] = []
    for word in words:
        if joined and (word in ("=", ":") or joined[-1].endswith(("=", ":"))):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> Words:
    """Folders, and the files that are wanted; of the only folder also what is in it, so that no space is added.

    Without names of which a shell would run a part: bash puts them into the command as they are."""
    start = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    folder, beginning = Path(os.path.expanduser(start or ".")), incomplete[len(start) :]
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    entries = [each for each in entries if each.name.startswith(beginning) and (beginning or each.name[0] != ".")]
    entries = [each for each in entries if each.name.isprintable() and not _OBEYED & {*each.name}]
    found = [start + each.name + "/" * each.is_dir() for each in entries if each.is_dir() or wanted(each)]
    if len(found) == 1 and found[0].endswith("/") and found[0] != incomplete:
        return [(found[0], ""), *_paths(found[0], wanted)]
    return [(path, "") for path in found]
