"""The preset `simclr`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.views import Preset, PresetOptions

#: Views up to this side get the recipe that papers use on CIFAR.
SMALL = 64


class SimCLROptions(PresetOptions):
    strength: float | None = Field(default=None, ge=0)
    """Multiplies the brightness, contrast, saturation and hue of the color jitter; by default 0.5 up to 64 pixels,
    else 1."""
    blur: float | None = Field(default=None, ge=0, le=1)
    """Fraction of samples that are blurred; by default 0 up to 64 pixels, else 0.5."""


class SimCLRPreset(Preset):
    """SimCLR's two views (Chen et al., https://arxiv.org/abs/2002.05709, appendices A and B.9)."""

    Options = SimCLROptions

    @classmethod
    def views(cls, options: SimCLROptions, size: int) -> list[dict[str, Any]]:
        small = size <= SMALL
        strength = 0.5 if small and options.strength is None else 1.0
        p = options.blur if options.blur is not None else (0.0 if small else 0.5)
        return [
            {
                "count": 2,
                "crop_scale": [0.08, 1.0],
                "interpolation": "bicubic",
                "flip": 0.5,
                "jitter": {
                    "brightness": 0.8 * strength,
                    "contrast": 0.8 * strength,
                    "saturation": 0.8 * strength,
                    "hue": 0.2 * strength,
                    "p": 0.8,
                },
                "grayscale": 0.2,
                # A tenth of a small view would be a kernel of 3 pixels, which hardly blurs.
                "blur": p if small or p == 0 else {"p": p, "kernel": 0.1},
            }
        ]
