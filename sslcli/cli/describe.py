"""What `ssl list` says about one plugin, or about one section of a config."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from sslcli.contracts.errors import UserError
from sslcli.foreign import results

if TYPE_CHECKING:
    from sslcli.plugins import FoundPlugin

_RESUME = {"free": "  (a resumed run may have another)", "warn": "  (a resumed run with another warns)"}


def names(plugin: FoundPlugin) -> dict[str, str]:
    """Returns what a package says about its plugin in its metadata."""
    return {key: getattr(plugin, key) for key in ("name", "package", "version", "target")}


def plain(plugin: FoundPlugin) -> dict[str, Any]:
    """Returns what `ssl list GROUP --json` promises; imports nothing of the plugin.

    `default`: the plugin is used if none is named; a callback is on unless a config says null.
    """
    from .catalog import about, known

    return {**names(plugin), **about(plugin), "default": known(plugin).get("default", False)}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each plugin, cut to the terminal: name, whether it is the default, meaning, origin; methods as
    a table with a head that has year, needs and views too."""
    from .catalog import PACKAGE

    room = shutil.get_terminal_size().columns - 2 if results().isatty() else sys.maxsize
    columns = [[row["name"] + " (default)" * row["default"], *_facts(row)] for row in rows]
    about = [row["summary"] for row in rows]
    if any(len(each) > 1 for each in columns):
        columns.insert(0, ["method", "year", "needs", "views"])
        about.insert(0, "")
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    origins = [
        "" if row["package"] == PACKAGE else f"({row['package']} {row['version']}, {row['target']})" for row in rows
    ]
    lines = []
    for cells, summary, origin in zip(columns, about, [""] * (len(columns) - len(rows)) + origins, strict=True):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        line = "  ".join([*padded, *filter(None, [summary, origin])]).rstrip()
        lines.append(line if len(line) <= room else f"{line[: room - 1]}…")
    return lines or ["none"]


def _facts(row: dict[str, Any]) -> list[str]:
    if "year" not in row:
        return []
    needs = "" if row["needs"] is None else ", ".join(row["needs"]) or "-"
    return [str(row["year"] or ""), needs, row["views"]]


def plugin(group: str, name: str) -> dict[str, Any]:
    """Returns a plugin with its options; for a provider of many backbones, all members as a config names them."""
    from sslcli.config.rows import option_rows
    from sslcli.plugins import choose, load, load_found, member_names

    found = choose(group, name.partition("/")[0])
    if "/" not in name and hasattr(provider := load_found(found), "names"):
        members = [f"{found.name}/{member}" for member in member_names(provider, found.name)]
        return {**plain(found), "help": _help(provider), "options": [], "members": members}
    cls = load(group, name)
    described = {**plain(found), "help": _help(cls), "paper": getattr(cls, "paper", "")}
    described["options"] = option_rows(cls.Options)
    return described | (_evaluations(cls) if group == "evaluators" else {})


def _evaluations(cls: Any) -> dict[str, Any]:
    """What every evaluator has besides its own options."""
    from sslcli.config.rows import option_rows
    from sslcli.evaluation.targets import ShownOptions

    protocols = {name: {"source": each.source, "options": each.options} for name, each in cls.protocols.items()}
    return {"shared_options": option_rows(ShownOptions), "protocols": protocols}


def plugin_lines(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the text of what `plugin` returns."""
    from sslcli.config.merge import as_arguments

    if "members" in found:
        return [*found["members"]]
    lines = [f"{name}  ({found['package']} {found['version']})", _indented(found["help"], 2)]
    lines += [f"  {key}: {found[key]}" for key in ("paper", "year", "views") if found.get(key)]
    lines += [f"  needs: {', '.join(found['needs'])}"] if found.get("needs") else []
    lines += ["options:", *_option_lines(found["options"])] if found["options"] else ["no options"]
    if shared := found.get("shared_options"):
        lines += ["options of every evaluation:", *_option_lines(shared)]
    if protocols := found.get("protocols"):
        lines.append("published settings (protocol=NAME; other options change them):")
    for protocol, each in (protocols or {}).items():
        lines.append(f"  {protocol}: {each['source']}")
        values = {key: value for key, value in each["options"].items() if key != "protocol"}
        lines.append(_indented("; ".join(as_arguments(values)), 6))
    return lines


def section(name: str, option: str | None = None) -> dict[str, Any]:
    """Returns a section of a config: its options, those that all of its plugins have, and the plugins.

    Args:
        name: the section.
        option: only this one and what is below it; UserError if there is none.
    """
    from sslcli.plugins import find, suggest

    from .catalog import read

    known = read()["sections"][name]
    found = {"section": name, "help": known["summary"], "options": known["options"]}
    if option is not None:
        rows = [row for row in known["options"] if f"{row['name']}.".startswith(f"{option}.")]
        if not rows:
            near = suggest(option, [row["name"] for row in known["options"]], otherwise=True)
            raise UserError(f"unknown option {option!r} of {name}{near}")
        return {**found, "options": rows}
    if known["group"] is not None:
        found |= {"group": known["group"], "plugins": [plain(each) for each in find(known["group"])]}
    return found


def section_lines(found: dict[str, Any]) -> list[str]:
    """Returns the text of what `section` returns."""
    from sslcli.plugins import GROUPS

    name, group = found["section"], found.get("group")
    lines = [name, _indented(found["help"], 2)]
    if found["options"]:
        whose = f"options of every {GROUPS[group].noun}" if group is not None and name != "views" else "options"
        lines += [f"{whose}:", *_option_lines(found["options"])]
    if group is not None:
        how = f"{name}: {{name: NAME, OPTION: …}}" if name not in ("views", "callbacks") else f"{name}: …"
        lines += [f"{group} (`{how}`):", *(f"  {line}" for line in table(found["plugins"]))]
        lines.append(f"options of one: ssl list {group} NAME")
    return lines


def _option_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        unknown = row["default"] is None and None not in row["choices"]  # of a preset or a plugin
        default = "" if unknown else f" = {json.dumps(row['default'], ensure_ascii=False)}"
        default = " required" if row["required"] else default
        lines.append(f"  {row['name']}: {row['type']}{default}{_RESUME.get(row['resume'], '')}")
        lines += [_indented(row["help"], 6)] if row["help"] else []
    return lines


def _indented(text: str, spaces: int) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * spaces, subsequent_indent=" " * spaces)


def _help(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())
