"""`ssl list`: the installed plugins, the options of each, and whether all of them load."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from sslcli.contracts.options import Options
    from sslcli.plugins import FoundPlugin

#: The keys that `ssl list GROUP --json` promises.
KEYS = ("name", "package", "version", "target")


def list_plugins(
    group: Annotated[str | None, typer.Argument(help="methods, backbones, datasets, …", metavar="GROUP")] = None,
    name: Annotated[str | None, typer.Argument(help="A plugin of the group.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Load every plugin; exit with 1 if one fails.")] = False,
) -> int:
    """List the installed plugins, or those of GROUP; with NAME, show the options of one.

    Example: ssl list methods simclr
    """
    from sslcli.plugins import GROUPS, find, get_group

    groups = [get_group(group).name] if group is not None else list(GROUPS)
    if check:
        return _check(groups, as_json)
    if name is not None:
        _describe(groups[0], name, as_json)
        return 0
    found = {each: find(each) for each in groups}
    if as_json:
        plain = {each: [_plain(plugin) for plugin in plugins] for each, plugins in found.items()}
        print(json.dumps(plain[groups[0]] if group is not None else plain, indent=2))
        return 0
    for each, plugins in found.items():
        if group is None:
            print(f"{each}:")
        _table([[p.name, p.package, p.version, p.target] for p in plugins], "" if group is not None else "  ")
    return 0


def _plain(plugin: FoundPlugin) -> dict[str, str]:
    return {key: value for key, value in asdict(plugin).items() if key in KEYS}


def _table(rows: list[list[str]], indent: str = "") -> None:
    if not rows:
        print(f"{indent}none")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _check(groups: list[str], as_json: bool) -> int:
    from sslcli.plugins import PluginError, find, load_found

    results: list[dict[str, Any]] = []
    for group in groups:
        plugins = find(group)
        for plugin in plugins:
            problem = None
            try:
                load_found(plugin)
            except PluginError as error:
                problem = str(error)
            rivals = [other.package for other in plugins if other.name == plugin.name and other != plugin]
            row = {"group": group, **_plain(plugin), "ok": problem is None, "error": problem, "clashes_with": rivals}
            results.append(row)
    failed = [result for result in results if not result["ok"]]
    if as_json:
        print(json.dumps(results, indent=2))
        return 1 if failed else 0
    for result in results:
        word = "ok" if result["ok"] else "FAILED"
        clash = f"  (also in {', '.join(result['clashes_with'])})" if result["clashes_with"] else ""
        print(f"{word:<6}  {result['group']}/{result['name']}  {result['package']} {result['version']}{clash}")
        if result["error"]:
            print(f"        {result['error']}")
    print(f"{len(results) - len(failed)} of {len(results)} plugins load")
    return 1 if failed else 0


def _describe(group: str, name: str, as_json: bool) -> None:
    from sslcli.plugins import choose, load, load_found

    plugin = choose(group, name.partition("/")[0])
    if "/" not in name and hasattr(provider := load_found(plugin), "names"):
        _list_members(plugin, provider, as_json)
        return
    cls = load(group, name)
    rows = option_rows(cls.Options)
    paper = getattr(cls, "paper", "")
    if as_json:
        print(json.dumps({**_plain(plugin), "help": _help(cls), "paper": paper, "options": rows}, indent=2))
        return
    print(f"{name}  ({plugin.package} {plugin.version})")
    print(textwrap.fill(_help(cls), 100, initial_indent="  ", subsequent_indent="  "))
    if paper:
        print(f"  paper: {paper}")
    print("options:" if rows else "no options")
    for row in rows:
        default = "required" if row["required"] else f"= {json.dumps(row['default'], ensure_ascii=False)}"
        print(f"  {row['name']}: {row['type']} {default}")
        if row["help"]:
            print(textwrap.fill(row["help"], 100, initial_indent="      ", subsequent_indent="      "))


def _list_members(plugin: FoundPlugin, provider: Any, as_json: bool) -> None:
    """Lists the members of a provider, as a config names them; each has its own options."""
    members = [f"{plugin.name}/{member}" for member in sorted(provider.names())]
    if as_json:
        print(json.dumps({**_plain(plugin), "help": _help(provider), "options": [], "members": members}, indent=2))
        return
    print("\n".join(members))


def _help(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def option_rows(options: type[Options], prefix: str = "") -> list[dict[str, Any]]:
    """Lists options with their types, defaults and help; those of nested sections with dotted names."""
    from pydantic import BaseModel

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
                "default": _plain_default(default),
                "help": " ".join((field.description or "").split()),
            }
        )
    return rows


def _plain_default(value: Any) -> Any:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return list(value)
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)


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
