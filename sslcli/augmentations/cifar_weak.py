"""The preset `cifar_weak`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .moco_v2 import MoCoV2Preset


class CIFARWeakPreset(Preset):
    """MoCo v2's views with bicubic crops from 8 % of the image, as libraries use them on CIFAR."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        (view,) = MoCoV2Preset.views(options, size)
        return [{**view, "crop_scale": [0.08, 1.0], "interpolation": "bicubic"}]
