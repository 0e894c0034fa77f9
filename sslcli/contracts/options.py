"""Options: the typed, strict, self-documenting settings that every plugin class owns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator

ResumeRule = Literal["fixed", "warn", "free"]

#: `Field(..., json_schema_extra=FREE)`: may differ between a run and its resumption, silently.
FREE: dict[str, Any] = {"resume": "free"}
#: May differ; the user is warned.
WARN: dict[str, Any] = {"resume": "warn"}


class Options(BaseModel):
    """Base of every plugin's `Options`.

    Unknown keys are rejected and scalars are strict (`"1"` is not a number, `1` is not a bool), while lists become
    tuples and strings become paths and enums. The docstring below a field is its help text. A field is `fixed` on
    resume unless it says otherwise with `json_schema_extra=FREE` or `WARN`.

    Attributes:
        legacy: what options meant in runs before they existed, or before their default changed, by name. A resumed run
            keeps its own value of these (see `as_in_run`), so that a new default changes new runs only.
    """

    legacy: ClassVar[Mapping[str, Any]] = {}

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _fits_64_bits(cls, value: Any) -> Any:
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is int and not -(2**63) <= number < 2**63 for number in numbers):
            raise ValueError("should be a number of 64 bits")
        return value

    @field_validator("*")
    @classmethod
    def _of_a_user_that_exists(cls, value: Any) -> Any:
        """Refuses `~nobody/x` where it can be named; whoever expands it would fail."""
        if isinstance(value, Path):
            try:
                value.expanduser()
            except RuntimeError as error:
                raise ValueError(f"{value}: there is no such user") from error
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Builds the options from plain data (what YAML or JSON holds).

        Raises:
            pydantic.ValidationError: with every problem found.
        """
        # pydantic's strict JSON mode is this rule: scalars keep their type, containers are converted.
        return cls.model_validate_json(json.dumps(dict(values), default=str))

    def plain(self) -> dict[str, Any]:
        """Returns the options as plain data, the inverse of `parse`."""
        return self.model_dump(mode="json")

    def as_in_run(self, stored: Mapping[str, Any]) -> Self:
        """Returns these options for a run that was started with others: those in `legacy` that are not set here have
        the run's value, or the legacy one if the run is older than they are. Everything else stays.

        Args:
            stored: the plain options that are stored with the run.
        """
        kept: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, value in self:
            if isinstance(value, Options):
                before = stored.get(name)
                kept[name] = value.as_in_run(before if isinstance(before, Mapping) else {})
            elif name in self.legacy and name not in self.model_fields_set:
                plain[name] = stored.get(name, self.legacy[name])
        if plain:
            parsed = self.parse({**self.plain(), **plain})
            kept |= {name: getattr(parsed, name) for name in plain}
        return self.model_copy(update=kept)

    def with_defaults(self, **values: Any) -> Self:
        """Returns these options with other values, which count as not set by the user (see `as_in_run`)."""
        changed = self.model_copy(update=values)
        changed.model_fields_set.difference_update(values)
        return changed

    @classmethod
    def resume_rule(cls, field: str) -> ResumeRule:
        """Returns what happens if `field` differs between a run and its resumption."""
        info = cls.model_fields.get(field)
        extra = info.json_schema_extra if info is not None else None
        rule = extra.get("resume", "fixed") if isinstance(extra, dict) else "fixed"
        return rule if rule in ("warn", "free") else "fixed"  # type: ignore[return-value]
