"""The preset `lejepa`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.views import Preset

from .byol import COMMON
from .local_views import MultiCropOptions, local_views


class LeJEPAOptions(MultiCropOptions):
    """Options of multi-crop with LeJEPA's defaults."""

    global_count: int = Field(default=2, ge=1, le=1000)
    """Number of global views."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Minimum and maximum fraction of the image that a global view shows."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Minimum and maximum fraction of the image that a local view shows."""


class LeJEPAPreset(Preset):
    """LeJEPA's two global and six local views, which differ in nothing but their crops (Balestriero & LeCun,
    https://arxiv.org/abs/2511.08544; its code's README).

    `local_count: 0, global_count: 4, global_scale: [0.08, 1]` are the crops of the minimal example in its code, whose
    jitter is twice as strong (`strength: 2`).
    """

    Options = LeJEPAOptions

    @classmethod
    def views(cls, options: LeJEPAOptions, size: int) -> list[dict[str, Any]]:
        """Raises UserError if local views would not be smaller than global ones."""
        shared = {**COMMON, "interpolation": "bilinear", "blur": 0.5, "solarize": 0.2}
        global_views = {**shared, "count": options.global_count, "crop_scale": list(options.global_scale)}
        return [global_views, *local_views(options, size, shared)]
