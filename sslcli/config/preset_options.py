"""What every preset takes: `count` and `strength`, which change the views that it returns."""

from __future__ import annotations

import itertools
import logging
from typing import Any

from pydantic import ValidationError

from sslcli.contracts.views import PresetOptions
from sslcli.plugins import load

from .document import Key
from .problems import Problems

log = logging.getLogger(__name__)

#: What a strength multiplies, and the largest shift of the hue: half of the color wheel in either direction.
FACTORS, HALF = ("brightness", "contrast", "saturation", "hue"), 0.5


def changed_views(
    views: list[dict[str, Any]], options: PresetOptions, size: int, key: Key, problems: Problems
) -> list[dict[str, Any]]:
    """Returns the views of a preset or of a method's list, as many and as strong as the options say.

    Args:
        views: as a config would list them.
        options: `count` and `strength`; None changes nothing.
        size: side in pixels of a view without `size`.
        key: the section's.
        problems: gets a hue that would turn by more than half of the color wheel.
    """
    if options.strength is not None:
        views = _strengthened(views, options.strength, (*key, "strength"), problems)
    return views if options.count is None else _counted(views, options.count, size)


def _counted(views: list[dict[str, Any]], count: int, size: int) -> list[dict[str, Any]]:
    """So many of the largest views, in turns where there are several kinds, and the others (local ones) as before."""
    largest = max(view.get("size") or size for view in views)
    whole = [view for view in views if (view.get("size") or size) == largest]
    kinds = [{**view, "count": 1} for view in whole for _ in range(view.get("count", 1))]
    turns = (kinds[index % len(kinds)] for index in range(count))
    runs = [list(equal) for _, equal in itertools.groupby(turns)]
    return [{**run[0], "count": len(run)} for run in runs] + [view for view in views if view not in whole]


def _strengthened(views: list[dict[str, Any]], strength: float, key: Key, problems: Problems) -> list[dict[str, Any]]:
    jitters = [jitter for view in views if (jitter := _jitter(view)) is not None]
    if not jitters and strength != 1:
        log.warning(f"{'.'.join(key)}: changes nothing, since none of these views has a color jitter")
    hue = max((jitter["hue"] for jitter in jitters), default=0.0)
    if strength * hue > HALF:
        most = f"at most {HALF / hue:g}"
        problems.add(key, f"{strength:g} would turn the hue by more than half of the wheel: {most}")
        return views
    return [_with_jitter(view, strength) for view in views]


def _jitter(view: dict[str, Any]) -> dict[str, Any] | None:
    """All options of a view's color jitter; None if it has none, or none that is valid."""
    listed = view.get("operations")
    found = view.get("jitter") if listed is None else next((each for each in listed if _is_jitter(each)), None)
    if isinstance(found, list) and len(found) == len(FACTORS):
        found = dict(zip(FACTORS, found, strict=True))
    if isinstance(found, int | float):
        found = {"p": float(found)} if found else None
    elif isinstance(found, str):
        found = {}
    try:
        options = {name: value for name, value in found.items() if name != "name"} if found is not None else None
        return None if options is None else dict(load("augmentations", "jitter").Options.parse(options).plain())
    except (ValidationError, AttributeError):
        return None


def _is_jitter(operation: Any) -> bool:
    return operation == "jitter" or (isinstance(operation, dict) and operation.get("name") == "jitter")


def _with_jitter(view: dict[str, Any], strength: float) -> dict[str, Any]:
    jitter = _jitter(view)
    if jitter is None:
        return view
    jitter |= {name: strength * jitter[name] for name in FACTORS}
    if view.get("operations") is None:
        return {**view, "jitter": jitter}
    operations = [{"name": "jitter", **jitter} if _is_jitter(each) else each for each in view["operations"]]
    return {**view, "operations": operations}
