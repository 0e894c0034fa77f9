"""Which plugin an error comes from that says nothing by itself, a RecursionError: by the frames of its traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

from sslcli.foreign import reason
from sslcli.plugins import GROUPS, FoundPlugin, find, module_of


def failure(error: BaseException) -> str | None:
    """Returns one line that names the plugin, the place in its code, and what it raised; None if none is involved."""
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        owner = _owner(str(frame.f_globals.get("__name__", "")))
        if owner is not None:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}, line {line}, in {code.co_name}"
            return f"plugin {owner.package}: {reason(error)} ({place})"
    return None


def _owner(module: str) -> FoundPlugin | None:
    """The first plugin of another package, or file, whose code is in the same package as a module."""
    top = module.partition(".")[0]
    others = (each for group in GROUPS for each in find(group) if each.package != "sslcli")
    return next((each for each in others if module_of(each).partition(".")[0] == top), None)
