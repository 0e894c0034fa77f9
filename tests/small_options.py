"""Options that make any plugin small enough for a test, whatever its other options are."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.method import MethodOptions
from sslcli.contracts.options import Options
from sslcli.plugins import find, load

#: Switches that make a different method of it: each is tested beside the plain one.
SWITCHES = ("views_together",)

#: What options of these names are set to, wherever a plugin has them: enough to run, quick.
SMALL: dict[str, Any] = {
    "hidden_dim": 32, "output_dim": 16, "bottleneck_dim": 16, "prototypes": 24, "queue_size": 32, "width": 8,
    "norm_groups": 4, "depth": 2,
}  # fmt: skip
#: What a method's other whole numbers are set to where their defaults are larger.
LARGE = 64


def small(options: type[Options], limit: int | None = None) -> dict[str, Any]:
    """The options that `SMALL` names, and a method's large numbers; also inside nested options."""
    limit = LARGE if issubclass(options, MethodOptions) else limit
    values: dict[str, Any] = {}
    for field, info in options.model_fields.items():
        if field in SMALL:
            values[field] = SMALL[field]
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Options):
            values[field] = small(info.annotation, limit)
        elif limit is not None and isinstance(info.default, int) and info.default > limit:
            values[field] = limit
    return values


def method_cases() -> list[str]:
    """Every built-in method, and once more with each of its `SWITCHES`: `byol`, `byol views_together`."""
    names = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
    fields = {name: load("methods", name).Options.model_fields for name in names}
    return [*names, *(f"{name} {switch}" for name in names for switch in SWITCHES if switch in fields[name])]


def method_case(case: str) -> tuple[str, dict[str, Any]]:
    """The method's name, and its small options with the switch on."""
    name, _, switch = case.partition(" ")
    return name, {**small(load("methods", name).Options), **({switch: True} if switch else {})}
