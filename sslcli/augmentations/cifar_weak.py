"""The preset `cifar_weak`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .moco_v2 import MoCoV2Preset


class CIFARWeakPreset(Preset):
    """MoCo v2's views as the libraries use them on CIFAR: crops down to 8 % of the image, bicubic."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        (view,) = MoCoV2Preset.views(options, size)
        return [{**view, "crop_scale": [0.08, 1.0], "interpolation": "bicubic"}]
