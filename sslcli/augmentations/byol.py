"""The preset `byol`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.views import Preset

#: What BYOL's two views have in common; they differ in blur and solarize.
COMMON: dict[str, Any] = {
    "count": 1,
    "crop_scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "flip": 0.5,
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
    "grayscale": 0.2,
}


class BYOLPreset(Preset):
    """BYOL's two different views, also used by Barlow Twins and VICReg (Grill et al., https://arxiv.org/abs/2006.07733,
    appendix B). The blur is PIL's wide one, as in the latter two; BYOL's own has `kernel: 0.1`."""

    fixed = [{**COMMON, "blur": 1.0}, {**COMMON, "blur": 0.1, "solarize": 0.2}]
