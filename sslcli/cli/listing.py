"""`ssl list`: the installed plugins, the sections of a config, the options of each, and whether all plugins load."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sslcli.contracts.errors import UserError
from sslcli.foreign import show

from . import completion
from .arguments import PluginFiles


def list_plugins(
    group: Annotated[
        str | None,
        typer.Argument(
            help="methods, backbones, … (plugins), a section of a config (training, data, views, …), or configs.",
            metavar="GROUP",
            autocompletion=completion.groups,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A plugin of the group, or an option of the section.",
            metavar="NAME",
            autocompletion=completion.members,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Load every plugin; exit with code 1 if any fails.")] = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print the JSON Schema of a config, with which editors complete and check it."),
    ] = False,
    plugin: PluginFiles = None,
) -> int:
    """List what can be set: plugins, or those of GROUP, or the options of a section; with NAME, the options of one.

    Examples: ssl list methods simclr

    ssl list training

    ssl list --schema > config.schema.json
    """
    from sslcli.plugins import GROUPS, find, register_file, suggest

    for path in plugin or []:
        register_file(path)
    if group == "configs":
        return _list_configs(as_json)
    from . import catalog, describe

    if schema:
        from sslcli.config.json_schema import config_schema

        show(json.dumps(config_schema(), indent=1, ensure_ascii=False))
        return 0
    group = group and group.removeprefix("sslcli.")
    sections = catalog.read()["sections"]
    if group is not None and group not in {**GROUPS, **sections}:
        raise UserError(
            f"unknown group or section {group!r}{suggest(group, [*GROUPS, *sections, 'configs'], otherwise=True)}"
        )
    if group in sections and (name is not None or check):
        group = sections[group]["group"] or group
    groups = [group] if group is not None else list(GROUPS)
    found: Any
    if group is not None and group not in GROUPS:
        found = describe.section(group, name)
        lines = describe.section_lines(found)
    elif check:
        found = [row for each in groups for row in _checked(each)]
        lines = _check_lines(found)
    elif name is not None:
        found = describe.plugin(groups[0], name)
        lines = describe.plugin_lines(name, found)
    else:
        found = {each: [describe.plain(plugin) for plugin in find(each)] for each in groups}
        lines = [line for each, rows in found.items() for line in (f"{each}:", *_indented(describe.table(rows)))]
        lines += ["sections of a config:", *_indented(_sections(sections))]
        lines.append("options of one: ssl list GROUP NAME, ssl list SECTION; example configs: ssl list configs")
        if group is not None:
            found = found[group]
            lines = [*describe.table(found), f"options of one: ssl list {group} NAME"]
            lines += ["one that is on by default is turned off by null: callbacks.knn=null"] * (group == "callbacks")
    show(json.dumps(found, indent=2) if as_json else _readable(lines))
    return 1 if check and not all(row["ok"] for row in found) else 0


def _readable(lines: list[str]) -> str:
    from sslcli.logs import shown  # what plugins of others are called and say

    return "\n".join(shown(line) for each in lines for line in each.split("\n"))


def _list_configs(as_json: bool) -> int:
    """The example configs, and what each is for."""
    from sslcli.config.examples import meaning, names

    rows = [{"name": name, "meaning": meaning(name)} for name in names()]
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name'].ljust(width)}  {row['meaning']}" for row in rows]
    show(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))
    return 0


def _sections(sections: dict[str, Any]) -> list[str]:
    width = max(map(len, sections))
    return [f"{name.ljust(width)}  {each['summary']}" for name, each in sections.items()]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _checked(group: str) -> list[dict[str, Any]]:
    from sslcli.plugins import PluginError, find, load_found

    from . import describe

    rows = []
    plugins = find(group)
    for plugin in plugins:
        problem = None
        try:
            load_found(plugin)
        except PluginError as error:
            problem = str(error)
        rivals = [other.package for other in plugins if other.name == plugin.name and other != plugin]
        rows.append(
            {"group": group, **describe.names(plugin), "ok": not problem, "error": problem, "clashes_with": rivals}
        )
    return rows


def _check_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        clash = f"  (also in {', '.join(row['clashes_with'])})" if row["clashes_with"] else ""
        state = "ok" if row["ok"] else "FAILED"
        lines.append(f"{state:<6}  {row['group']}/{row['name']}  {row['package']} {row['version']}{clash}")
        lines += [f"        {row['error']}"] * (not row["ok"])
    return [*lines, f"{sum(row['ok'] for row in rows)} of {len(rows)} plugins load"]
