"""The preset `cifar_asym`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .byol import unlike_pair


class CIFARAsymPreset(Preset):
    """BYOL's views as the libraries use them on CIFAR: without blur."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return unlike_pair(blur=(0.0, 0.0), solarize=(0.0, 0.2))
