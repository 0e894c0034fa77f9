"""The preset `probe_eval`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.views import Preset, PresetOptions

from .resampling import Interpolation
from .simclr import SMALL


class ProbeEvalOptions(PresetOptions):
    ratio: float | None = Field(default=None, ge=1)
    """The shorter side is resized to this times the view's size; by default 1 up to 64 pixels, else 256 / 224."""
    interpolation: Interpolation = "bilinear"
    """The filter: `bilinear` or `bicubic`; both antialiased."""


class ProbeEvalPreset(Preset):
    """The one view on which a probe is evaluated: the center of the resized image. Small images are not resized."""

    Options = ProbeEvalOptions

    @classmethod
    def views(cls, options: ProbeEvalOptions, size: int) -> list[dict[str, Any]]:
        usual = 1.0 if size <= SMALL else 256 / 224
        ratio = usual if options.ratio is None else options.ratio
        return [
            {"count": 1, "operations": [{"name": "resize", "ratio": ratio, "interpolation": options.interpolation}]}
        ]
