"""The preset `supcon`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset

from .moco_v2 import MoCoV2Preset


class SupConPreset(Preset):
    """SupCon's two views in its authors' PyTorch code: MoCo v2's without blur (https://arxiv.org/abs/2004.11362)."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        (view,) = MoCoV2Preset.views(options, size)
        return [{**view, "blur": 0.0}]
