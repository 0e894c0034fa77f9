"""The option `strength` of presets that have a color jitter."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

#: What a strength multiplies, and the largest shift of the hue: half of the color wheel in either direction.
FACTORS, HALF = ("brightness", "contrast", "saturation", "hue"), 0.5


class StrengthOptions(Options):
    """Options of a preset with a color jitter."""

    strength: float = Field(default=1.0, ge=0)
    """Multiplies the brightness, contrast, saturation and hue of the color jitter, not how often it is applied."""


class JitteredPreset(Preset):
    """A preset of `fixed` views whose jitter has a strength."""

    Options = StrengthOptions

    @classmethod
    def views(cls, options: StrengthOptions, size: int) -> list[dict[str, Any]]:
        return strengthened(super().views(options, size), options.strength)


def strengthened(views: list[dict[str, Any]], strength: float) -> list[dict[str, Any]]:
    """Returns views whose color jitter is `strength` times as strong.

    Raises:
        UserError: a hue would turn by more than half of the color wheel.
    """
    most = HALF / max(view["jitter"]["hue"] for view in views)
    if strength > most:
        raise UserError(
            f"views.strength: {strength:g} would turn the hue by more than half of the wheel: at most {most:g}"
        )
    return [
        {**view, "jitter": {**view["jitter"], **{name: strength * view["jitter"][name] for name in FACTORS}}}
        for view in views
    ]
