"""Views that change in a run: a `views:` section with `phases`, a list of sections and how long each of them lasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import field_validator

from sslcli.contracts.options import Options

from .document import Key
from .options import parse_into
from .problems import Problems, show

#: A share of the run, `90%`, or a number of epochs.
Until = str | int | float


class PhaseOptions(Options):
    """A phase of a run, in which it has its own views."""

    until: Until | None = None
    """Where it ends: a share of the run (`90%`) or a number of epochs; the last phase has none."""
    views: Any = None
    """Its views: a section as without phases; by default the method's own."""

    @field_validator("until")
    @classmethod
    def _is_within_a_run(cls, value: Until | None) -> Until | None:
        try:
            if value is None or (_number(value) > 0 and (not isinstance(value, str) or value.endswith("%"))):
                return value
        except (ValueError, ZeroDivisionError):
            pass
        raise ValueError("should be a share of the run, such as 90%, or a number of epochs above 0")


@dataclass(frozen=True)
class ViewPhase:
    """Views (`ViewSpec`s with every operation and option) until a point of the run; None: until its end."""

    until: Until | None
    views: tuple[Any, ...]

    def plain_views(self) -> list[dict[str, Any]]:
        """Returns the views as plain data."""
        return [
            {
                "count": view.count,
                "size": view.size,
                "operations": [{"name": each.name, **each.options} for each in view.operations],
            }
            for view in self.views
        ]


def share_of_run(until: Until, epochs: int) -> Fraction:
    """Returns which part of a run of so many epochs is over at that point."""
    return _number(until) / (100 if isinstance(until, str) else epochs)


def _number(until: Until) -> Fraction:
    """The exact value of what was written, without its unit: 0.1 is a tenth."""
    return Fraction(str(until).removesuffix("%"))


def plain_phases(phases: tuple[ViewPhase, ...]) -> Any:
    """Returns the section that `resolve_phases` makes equal phases of: of a single one only its views."""
    if len(phases) == 1:
        return phases[0].plain_views()
    written = [{"until": phase.until, "views": phase.plain_views()} for phase in phases]
    del written[-1]["until"]
    return {"phases": written}


def resolve_phases(
    section: Any, views_of: Callable[[Any, Key], tuple[Any, ...]], epochs: int | None, problems: Problems
) -> tuple[ViewPhase, ...]:
    """Returns the phases of a run, one or more.

    Args:
        section: the config's `views:`.
        views_of: resolves a section without phases, at its key.
        epochs: of the run; None if that is not known because of another problem.
        problems: gets everything that is wrong.
    """
    key: Key = ("views",)
    if not isinstance(section, dict) or section.get("phases") is None:
        return (ViewPhase(None, views_of(section, key)),)
    for name, value in section.items():
        if name != "phases" and value is not None:
            problems.add((*key, name), "cannot be combined with phases: set it in the `views` of each phase")
    key, listed = (*key, "phases"), section["phases"]
    if not isinstance(listed, list) or not listed:
        problems.add(key, f"should be a list of phases, each with `views` and `until`, not {show(listed)}")
        return ()
    phases: list[ViewPhase] = []
    before: tuple[Until, Fraction] | None = None
    for index, item in enumerate(listed):
        child = (*key, str(index))
        if not isinstance(item, dict):
            problems.add(child, f"should be a mapping with `views` and `until`, not {show(item)}")
            continue
        parsed = parse_into(problems, PhaseOptions, item, "a phase", child)
        if parsed is None:
            continue
        until, at = parsed.until, (*child, "until")
        if index == len(listed) - 1:
            if until is not None:
                problems.add(at, "the last phase lasts until the end of the run: remove it, or add a phase")
        elif until is None:
            problems.add(child, "missing `until`: a share of the run, such as 90%, or a number of epochs")
        elif epochs is not None:
            share = share_of_run(until, epochs)
            if share >= 1:
                problems.add(at, f"{until} is not before the end of the run, which has {epochs} epochs; write a share")
            elif before is not None and share <= before[1]:
                problems.add(at, f"{until} is not after {before[0]}, the end of the phase before it")
            before = (until, share)
        phases.append(ViewPhase(until, views_of(item.get("views"), (*child, "views"))))
    return tuple(phases)
