"""Options as plain rows (name, type, default, help): for `ssl list`, completion and documentation."""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from sslcli.contracts.options import Options


def option_rows(options: type[Options], prefix: str = "") -> list[dict[str, Any]]:
    """Lists options; those of nested sections with dotted names.

    Returns:
        rows with `name`, `type`, `required`, `default`, `help`, `choices` (the values of an option that has few; other
        ones may be allowed too) and `resume`: whether a resumed run may have another value (`free`), is warned of it
        (`warn`), or must have the same (`fixed`).
    """
    rows: list[dict[str, Any]] = []
    for name, field in options.model_fields.items():
        annotation = field.annotation
        nested = next((each for each in _members(annotation) if _is_section(each)), None)
        if nested is None or nested is not annotation:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            rows.append(
                {
                    "name": prefix + name,
                    "type": type_name(annotation),
                    "required": field.is_required(),
                    "default": to_jsonable_python(default, fallback=str),
                    "help": " ".join((field.description or "").split()),
                    "choices": _choices(annotation),
                    "resume": options.resume_rule(name),
                }
            )
        if nested is not None:
            rows += option_rows(nested, f"{prefix}{name}.")
    return rows


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself; without the limits that `Annotated` holds."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(one for member in get_args(annotation) for one in _members(member))
    return (annotation,)


def _choices(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for member in _members(annotation):
        found += get_args(member) if get_origin(member) is Literal else ()
        found += [True, False] if member is bool else [None] if member is type(None) else []
    return found


def type_name(annotation: Any) -> str:
    """Returns the name of a type for users, without the limits that `Annotated` holds."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(members[0])
    if origin is Literal:
        return " | ".join("null" if member is None else repr(member) for member in members)
    if origin in (Union, UnionType):
        return " | ".join(type_name(member) for member in members)
    if origin is not None:
        inside = ", ".join("..." if member is Ellipsis else type_name(member) for member in members)
        return f"{type_name(origin)}[{inside}]"
    if _is_section(annotation):
        return "mapping"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def summary_of(docstring: str | None) -> str:
    """Returns the first sentence of a docstring's first paragraph, on one line, without references in parentheses."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    paragraph = re.sub(r" \([^()]*(?:et al\.|https:)[^()]*\)", "", paragraph)
    return re.split(r"(?<=[^.]{3}\.) (?=[A-Z`])", paragraph)[0]
