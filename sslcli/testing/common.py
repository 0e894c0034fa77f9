"""What all checks share: a sentence for each broken rule, options, and comparisons of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options
from sslcli.runs import files


def require(condition: object, sentence: str) -> None:
    """Raises AssertionError with the sentence unless the condition holds (also under `python -O`)."""
    if not condition:
        raise AssertionError(sentence)


def require_is(what: str, found: object, expected: object) -> None:
    """Requires equal values; the sentence is `WHAT is FOUND, not EXPECTED`."""
    require(found == expected, f"{what} is {found}, not {expected}")


def require_savable(what: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Requires a state that a checkpoint can hold: tensors, numbers and text; returns copies of its tensors."""
    for key, value in state.items():
        require(isinstance(value, Tensor | int | float | str), f"{what}: the state {key!r} is a {type(value).__name__}")
    with reported(f"{what} cannot be saved", ValueError):
        return files.snapshot({key: value for key, value in state.items() if isinstance(value, Tensor)})


def kind(value: object) -> str:
    """Describes a tensor: `torch.uint8 (3, 32, 32)`; of anything else the class."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@contextmanager
def reported(sentence: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Turns errors of these kinds into an AssertionError: the sentence, then the error in one line."""
    try:
        yield
    except kinds as error:
        raise AssertionError(f"{sentence}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def check_options(cls: Any, values: Mapping[str, Any] | None, base: type[Options] = Options) -> Any:
    """Checks a plugin class's docstring and its `Options`, which inherit from `base`; returns those parsed."""
    label = cls.__name__
    require((cls.__doc__ or "").strip(), f"{label} has no docstring; `ssl list` shows its first paragraph")
    options = cls.Options
    good = isinstance(options, type) and issubclass(options, base)
    require(good, f"{label}.Options must be a class that inherits from {base.__name__}")
    for name in _undocumented(options):
        raise AssertionError(f"{label}.Options.{name} has no docstring below it, or no type that pydantic reads")
    try:
        parsed = options.parse(values or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise AssertionError(f"{label}.Options rejects the options of the check: {where}: {problem['msg']}") from error
    unknown = sorted({*options.legacy} - {*options.model_fields})
    require(not unknown, f"{label}.Options.legacy names {', '.join(unknown)}, which is no option")
    plain = parsed.plain()
    with reported(f"{label}.Options cannot read what its plain() returned", ValueError):
        again = options.parse(json.loads(json.dumps(plain)))
    require(again == parsed, f"{label}.Options differ after plain() and parse(): {plain} became {again.plain()}")
    try:
        options.parse({**plain, "no_such_option": 1})
    except ValidationError:
        return parsed
    raise AssertionError(f"{label}.Options accepts unknown keys; a typo in a config would pass silently")


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
    return {name: tensor.detach().clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Lists the names whose tensors are not bitwise equal, or that only one of both has."""
    names = sorted({*before, *after})
    return [n for n in names if n not in before or n not in after or not equal(before[n], after[n])]


def require_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor], sentence: str) -> None:
    """Requires equal tensors; a `{}` in the sentence becomes the first name that differs."""
    different = changed(before, after)
    require(not different, sentence.replace("{}", "".join(map(repr, different[:1]))))


def require_finite(tensors: Mapping[str, Tensor], sentence: str) -> None:
    """Requires finite tensors; a `{}` in the sentence becomes the name of the first that is not."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    require(not bad, sentence.replace("{}", "".join(map(repr, bad[:1]))))


def equal(a: Tensor, b: Tensor) -> bool:
    """Tells whether two tensors are equal in type, shape and every bit (NaN equals NaN)."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and bool(((a == b) | (a.isnan() & b.isnan())).all())


def refusal(call: Callable[[], object]) -> str | None:
    """Returns the message of the call's UserError if it is one line; None if the call ends in any other way."""
    try:
        call()
    except Exception as error:
        lines = str(error).splitlines() if isinstance(error, UserError) else []
        return lines[0] if len(lines) == 1 else None
    return None
