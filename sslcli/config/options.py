"""From plain data to options: what null means, and options that stand on the command line alone (`k=20`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sslcli.contracts.options import Options

from .document import Document
from .merge import apply_overrides
from .problems import Problems

OptionsT = TypeVar("OptionsT", bound=Options)


def parse(model: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """Returns options of `model`; a null stands for the default where the option cannot itself be null.

    Configs and runs of version 0.1 have some names in British spelling (`normalisation`), which are still understood.

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


def overrides_as_data(overrides: list[str]) -> Document:
    """Parses `key.path=value` arguments into a document of nothing else; ConfigError with every malformed one."""
    document = Document({}, {(): "command line"})
    apply_overrides(document, overrides)
    return document


def parse_options(model: type[OptionsT], overrides: list[str], owner: str) -> OptionsT:
    """Returns options of `model` set by `key=value` arguments; ConfigError with every problem."""
    document = overrides_as_data(overrides)
    return validate(model, document.data, owner, document)


def validate(
    model: type[OptionsT], data: dict[str, Any], owner: str, document: Document, prefix: tuple[str, ...] = ()
) -> OptionsT:
    """Validates plain data as `model`; ConfigError with every problem, at the places that the document knows."""
    problems = Problems(document)
    try:
        return parse(model, data)
    except ValidationError as error:
        problems.add_validation(prefix, error, model, owner, data)
        problems.raise_any()
        raise
