"""What all checks begin with: a sentence for each broken promise, and options that keep theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options


def require(condition: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence unless the condition holds (also under `python -O`)."""
    if not condition:
        raise AssertionError(sentence)


def check_options(cls: Any, values: Mapping[str, Any] | None, base: type[Options] = Options) -> Any:
    """Checks a plugin class's own docstring and options.

    Args:
        cls: the plugin class.
        values: options as plain data; None for none.
        base: what the class's `Options` must inherit from.

    Returns:
        the parsed options.

    Raises:
        AssertionError: no docstring, undocumented options, or options that do not survive being written and read.
    """
    label = cls.__name__
    require(bool((cls.__doc__ or "").strip()), f"{label} has no docstring; `ssl list` shows its first paragraph")
    options = cls.Options
    require(
        isinstance(options, type) and issubclass(options, base),
        f"{label}.Options must be a class that inherits from {base.__name__}",
    )
    for name in _undocumented(options):
        raise AssertionError(f"{label}.Options.{name} has no docstring below it, or no type that pydantic reads")
    try:
        parsed = options.parse(values or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise AssertionError(f"{label}.Options refuses the options of the check: {where}: {problem['msg']}") from error
    plain = parsed.plain()
    try:
        again = options.parse(json.loads(json.dumps(plain)))
    except (ValidationError, ValueError) as error:
        raise AssertionError(f"{label}.Options cannot read back what its plain() returned: {error}") from error
    require(again == parsed, f"{label}.Options are others after plain() and parse(): {plain} became {again.plain()}")
    unknown = "no_such_option"
    try:
        options.parse({**plain, unknown: 1})
    except ValidationError:
        return parsed
    raise AssertionError(f"{label}.Options takes unknown keys; a typo in a config would pass silently")


def _undocumented(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        if not field.description:
            names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _undocumented(field.annotation, f"{prefix}{name}.")
    return names


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies parameters and buffers by name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Lists the names whose tensors are not equal to the bit, or that only one of both has."""
    names = sorted({*before, *after})
    return [n for n in names if n not in before or n not in after or not equal(before[n], after[n])]


def equal(a: Tensor, b: Tensor) -> bool:
    """Tells whether two tensors are the same in type, shape and every bit (NaN equals NaN)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def refusal(call: Callable[[], object]) -> str | None:
    """Returns the one-line message of the UserError that the call ends with, or None where it ends otherwise."""
    try:
        call()
    except UserError as error:
        text = str(error)
        return text if text and not re.search(r"\n", text) else None
    except Exception:
        return None
    return None
