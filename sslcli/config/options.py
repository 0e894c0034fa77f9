"""Options that stand on the command line alone: `k=20 temperature=0.1`."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from ..contracts.options import Options
from .document import Document
from .merge import apply_overrides
from .problems import Problems

OptionsT = TypeVar("OptionsT", bound=Options)


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
        return model.parse(data)
    except ValidationError as error:
        problems.add_validation(prefix, error, model, owner, data)
        problems.raise_any()
        raise
