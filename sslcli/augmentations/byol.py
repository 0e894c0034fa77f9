"""The preset `byol`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset


def unlike_pair(blur: tuple[float, float], solarize: tuple[float, float]) -> list[dict[str, Any]]:
    """BYOL's two views, which differ in blur and solarize alone."""
    shared = {
        "count": 1,
        "crop_scale": [0.08, 1.0],
        "interpolation": "bicubic",
        "flip": 0.5,
        "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
        "grayscale": 0.2,
    }
    return [{**shared, "blur": b, "solarize": s} for b, s in zip(blur, solarize, strict=True)]


class BYOLPreset(Preset):
    """BYOL's two unlike views, also Barlow Twins' and VICReg's (Grill et al., https://arxiv.org/abs/2006.07733, B)."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return unlike_pair(blur=(1.0, 0.1), solarize=(0.0, 0.2))
