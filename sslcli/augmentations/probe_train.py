"""The preset `probe_train`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.options import Options
from sslcli.contracts.views import Preset


class ProbeTrainPreset(Preset):
    """The one view on which a linear probe or fine-tuning is trained: random resized crop and flip."""

    @classmethod
    def views(cls, options: Options, size: int) -> list[dict[str, Any]]:
        return [{"count": 1, "crop_scale": [0.08, 1.0], "interpolation": "bilinear", "flip": 0.5}]
