"""The preset `cifar_asym`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .byol import COMMON


class CIFARAsymPreset(Preset):
    """BYOL's views without blur, as libraries use them on CIFAR."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return [{**COMMON}, {**COMMON, "solarize": 0.2}]
