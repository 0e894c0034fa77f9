"""From plain data to options: what null means, and options on the command line without a config (`k=20`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sslcli.contracts.options import Options

from .document import Document, Key
from .merge import apply_overrides
from .problems import Problems

OptionsT = TypeVar("OptionsT", bound=Options)


def parse(model: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Returns options of `model`; null means the default if it is not a value of the option.

    Names in the British spelling of version 0.1 (`normalisation`) are still understood.

    Raises:
        pydantic.ValidationError: with every problem found.
    """
    return model.parse(_cleaned(model, values))


def _cleaned(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in model.model_fields:
            name = re.sub(r"(normal|standard)is(?=e$|ation$)", r"\1iz", name)
        field = model.model_fields.get(name)
        annotation = field.annotation if field is not None else None
        members = [annotation, *getattr(annotation, "__args__", ())]
        if value is None and field is not None and type(None) not in members:
            continue
        nested = next((each for each in members if isinstance(each, type) and issubclass(each, BaseModel)), None)
        kept[name] = _cleaned(nested, value) if nested is not None and isinstance(value, dict) else value
    return kept


def parse_into(
    problems: Problems,
    model: type[OptionsT],
    values: Mapping[str, Any],
    owner: str,
    key: Key,
    renamed: Mapping[str, str] | None = None,
) -> OptionsT | None:
    """Returns options of `model`, or None after adding everything that is wrong to `problems`.

    Args:
        problems: where problems are added.
        model: the options' class.
        values: plain data.
        owner: who has the options, in messages about unknown ones (`'lars'`).
        key: the key of `values` in the config.
        renamed: the keys of options that have another name in the config (`scale` is `crop_scale`).
    """
    try:
        return parse(model, values)
    except ValidationError as error:
        problems.add_validation(key, error, model, owner, values, renamed)
        return None


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
