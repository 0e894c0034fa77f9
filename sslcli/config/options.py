"""From plain data to options: what null means, what is wrong with a value, and options without a config (`k=20`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sslcli.contracts.options import Options
from sslcli.plugins import suggest

from .document import Document, Key
from .merge import apply_overrides
from .problems import Problems, show

OptionsT = TypeVar("OptionsT", bound=Options)


def parse(model: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Returns options of `model`; null means the default if it is not a value of the option.

    Names in the British spelling of version 0.1 (`normalisation`) are still accepted. pydantic.ValidationError with
    every problem found.
    """
    return model.parse(_cleaned(model, values))


def _cleaned(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in model.model_fields:
            name = re.sub(r"(normal|standard)is(?=e$|ation$)", r"\1iz", name)
        members = _members(model, name)
        if value is None and members and type(None) not in members:
            continue
        nested = _nested(model, name)
        kept[name] = _cleaned(nested, value) if nested is not None and isinstance(value, dict) else value
    return kept


def _members(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The type of a field and, of a union, its members; empty for an unknown field."""
    if name not in model.model_fields:
        return ()
    annotation = model.model_fields[name].annotation
    return (annotation, *getattr(annotation, "__args__", ()))


def _nested(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    return next(
        (each for each in _members(model, name) if isinstance(each, type) and issubclass(each, BaseModel)), None
    )


def parse_into(
    problems: Problems,
    model: type[OptionsT],
    values: Mapping[str, Any],
    owner: str,
    key: Key,
    renamed: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
) -> OptionsT | None:
    """Returns options of `model`, or None after adding everything that is wrong to `problems`.

    Args:
        owner: who has the options, in messages about unknown ones (`'lars'`).
        key: the key of `values` in the config.
        renamed: the keys of options that have another name in the config (`scale` is `crop_scale`).
        also: further names besides the options, to suggest for an unknown one.
    """
    try:
        return parse(model, values)
    except ValidationError as error:
        items = error.errors(include_url=False)
    grouped: dict[Key, list[tuple[str, str]]] = {}
    for item in items:
        if item["type"] == "too_short" and any(item["loc"] == other["loc"][:-1] for other in items):
            continue  # the missing elements are those that have a problem
        path, fields = _path(item["loc"], values, model)
        path = tuple((renamed or {}).get(part, part) for part in path)
        known = [*fields, *(also if len(path) == 1 else ())]
        grouped.setdefault((*key, *path), []).append(_message(item, path, known, owner))
    for child, messages in grouped.items():
        # A union has one problem: `should be 'wide' or a valid number, not 'narrow'`.
        first, *others = dict.fromkeys(text for text, _ in messages)
        given = next((given for _, given in messages if given), "")
        problems.add(child, " or ".join([first, *(text.removeprefix("should be ") for text in others)]) + given)
    return None


def _path(location: tuple[int | str, ...], data: Any, model: type[BaseModel]) -> tuple[Key, list[str]]:
    """The part of pydantic's location that is a key of the data or a missing field, and the last model's fields."""
    path: list[str] = []
    for part in location:
        nested = None
        if isinstance(data, dict) and (part in data or part in model.model_fields):
            nested = _nested(model, str(part))
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue  # the label of a union's member
        path.append(str(part))
        if nested is not None and isinstance(data, dict):
            model = nested
        elif not isinstance(data, dict | list):
            break
    return tuple(path), list(model.model_fields)


def _message(item: Any, path: Key, fields: list[str], owner: str) -> tuple[str, str]:
    """What is wrong, and `, not …` if that helps."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"unknown option of {owner}{suggest(path[-1], fields, otherwise=True)}", ""
    if kind == "missing":
        return "has too few values" if isinstance(item["loc"][-1], int) else "missing; it has no default", ""
    text: str = item["msg"].replace("Input should be", "should be").removeprefix("Value error, ")
    text = _KINDS.get(text, text).removeprefix("Tuple ").replace(" after validation", "")
    return text, f", not {show(item.get('input'))}" if text.startswith("should be") else ""


#: YAML's words for types that pydantic calls by JSON's.
_KINDS = {
    "should be an object": "should be a mapping of options",
    "should be a valid array": "should be a list",
    "should be a valid dictionary": "should be a mapping",
}


def overrides_as_data(overrides: list[str]) -> Document:
    """Parses `key.path=value` arguments alone into a document; ConfigError with every malformed one."""
    document = Document({}, {(): "command line"})
    apply_overrides(document, overrides)
    return document


def parse_options(model: type[OptionsT], overrides: list[str], owner: str) -> OptionsT:
    """Returns options of `model` set by `key=value` arguments; ConfigError with every problem."""
    document = overrides_as_data(overrides)
    return validate(model, document.data, owner, document)


def validate(model: type[OptionsT], data: dict[str, Any], owner: str, document: Document, prefix: Key = ()) -> OptionsT:
    """Validates plain data as `model`; ConfigError with every problem and its origin according to `document`."""
    problems = Problems(document)
    options = parse_into(problems, model, data, owner, prefix)
    problems.raise_any()
    assert options is not None
    return options
