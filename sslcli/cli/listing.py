"""`ssl list`: the installed plugins, the options of each, and whether all of them load."""

from __future__ import annotations

import json
import textwrap
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from sslcli.contracts.options import Options
    from sslcli.plugins import FoundPlugin


def list_plugins(
    group: Annotated[
        str | None, typer.Argument(help="methods, backbones, datasets, …, or configs.", metavar="GROUP")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="A plugin of the group.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Load every plugin; exit with code 1 if any fails.")] = False,
) -> int:
    """List the installed plugins, or those of GROUP; with NAME, show the options of one.

    Example: ssl list methods simclr
    """
    from sslcli.plugins import GROUPS, find, get_group

    if group == "configs":
        return _list_configs(as_json)
    groups = [get_group(group).name] if group is not None else list(GROUPS)
    found: Any
    if check:
        found = [row for each in groups for row in _checked(each)]
        lines = _check_lines(found)
    elif name is not None:
        found = _described(groups[0], name)
        lines = found["members"] if "members" in found else _description_lines(name, found)
    else:
        found = {each: [_plain(plugin) for plugin in find(each)] for each in groups}
        lines = [line for each, rows in found.items() for line in (f"{each}:", *(f"  {row}" for row in _table(rows)))]
        if group is not None:
            found, lines = found[groups[0]], _table(found[groups[0]])
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))
    return 1 if check and not all(row["ok"] for row in found) else 0


def _list_configs(as_json: bool) -> int:
    """The example configs, and what each is for."""
    from sslcli.config.examples import meaning, names

    rows = [{"name": name, "meaning": meaning(name)} for name in names()]
    print(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else "\n".join(_table(rows)))
    return 0


def _plain(plugin: FoundPlugin) -> dict[str, str]:
    """What `ssl list GROUP --json` promises."""
    return {key: getattr(plugin, key) for key in ("name", "package", "version", "target")}


def _table(rows: list[dict[str, str]]) -> list[str]:
    widths = {key: max(len(row[key]) for row in rows) for key in (rows[0] if rows else ())}
    lines = ["  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip() for row in rows]
    return lines or ["none"]


def _checked(group: str) -> list[dict[str, Any]]:
    from sslcli.plugins import PluginError, find, load_found

    rows = []
    plugins = find(group)
    for plugin in plugins:
        problem = None
        try:
            load_found(plugin)
        except PluginError as error:
            problem = str(error)
        rivals = [other.package for other in plugins if other.name == plugin.name and other != plugin]
        rows.append({"group": group, **_plain(plugin), "ok": not problem, "error": problem, "clashes_with": rivals})
    return rows


def _check_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        clash = f"  (also in {', '.join(row['clashes_with'])})" if row["clashes_with"] else ""
        state = "ok" if row["ok"] else "FAILED"
        lines.append(f"{state:<6}  {row['group']}/{row['name']}  {row['package']} {row['version']}{clash}")
        lines += [f"        {row['error']}"] * (not row["ok"])
    return [*lines, f"{sum(row['ok'] for row in rows)} of {len(rows)} plugins load"]


def _described(group: str, name: str) -> dict[str, Any]:
    """A plugin with its options; for a provider of many backbones, all members as a config names them."""
    from sslcli.plugins import choose, load, load_found

    plugin = choose(group, name.partition("/")[0])
    if "/" not in name and hasattr(provider := load_found(plugin), "names"):
        members = [f"{plugin.name}/{member}" for member in sorted(provider.names())]
        return {**_plain(plugin), "help": _help(provider), "options": [], "members": members}
    cls = load(group, name)
    described = {**_plain(plugin), "help": _help(cls), "paper": getattr(cls, "paper", "")}
    described["options"] = option_rows(cls.Options)
    return described | (_evaluations(cls) if group == "evaluators" else {})


def _evaluations(cls: Any) -> dict[str, Any]:
    """What every evaluator has besides its own options."""
    from sslcli.evaluation.targets import ShownOptions

    protocols = {name: {"source": each.source, "options": each.options} for name, each in cls.protocols.items()}
    return {"shared_options": option_rows(ShownOptions), "protocols": protocols}


def _description_lines(name: str, plugin: dict[str, Any]) -> list[str]:
    from sslcli.config.merge import as_arguments

    lines = [f"{name}  ({plugin['package']} {plugin['version']})", _indented(plugin["help"], 2)]
    lines += [f"  paper: {plugin['paper']}"] if plugin["paper"] else []
    lines += ["options:", *_option_lines(plugin["options"])] if plugin["options"] else ["no options"]
    if shared := plugin.get("shared_options"):
        lines += ["options of every evaluation:", *_option_lines(shared)]
    if protocols := plugin.get("protocols"):
        lines.append("published settings (protocol=NAME; other options change them):")
    for protocol, each in (protocols or {}).items():
        lines.append(f"  {protocol}: {each['source']}")
        values = {key: value for key, value in each["options"].items() if key != "protocol"}
        lines.append(_indented("; ".join(as_arguments(values)), 6))
    return lines


def _option_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        default = "required" if row["required"] else f"= {json.dumps(row['default'], ensure_ascii=False)}"
        lines.append(f"  {row['name']}: {row['type']} {default}")
        lines += [_indented(row["help"], 6)] if row["help"] else []
    return lines


def _indented(text: str, spaces: int) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * spaces, subsequent_indent=" " * spaces)


def _help(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def option_rows(options: type[Options], prefix: str = "") -> list[dict[str, Any]]:
    """Lists options with their types, defaults and help; those of nested sections with dotted names."""
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    rows: list[dict[str, Any]] = []
    for name, field in options.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += option_rows(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        rows.append(
            {
                "name": prefix + name,
                "type": _type_name(annotation),
                "required": field.is_required(),
                "default": to_jsonable_python(default, fallback=str),
                "help": " ".join((field.description or "").split()),
            }
        )
    return rows


def _type_name(annotation: Any) -> str:
    """The name of a type for users, without the limits that `Annotated` holds."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(members[0])
    if origin is Literal:
        return " | ".join("null" if member is None else repr(member) for member in members)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(member) for member in members)
    if origin is not None:
        inside = ", ".join("..." if member is Ellipsis else _type_name(member) for member in members)
        return f"{_type_name(origin)}[{inside}]"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
