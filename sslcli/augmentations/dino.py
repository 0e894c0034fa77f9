"""The preset `dino`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.views import Preset

from .byol import COMMON
from .local_views import MultiCropOptions, local_views


class DINOOptions(MultiCropOptions):
    """Options of multi-crop with DINO's defaults."""

    local_count: int = Field(default=8, ge=0, le=1000)
    """Number of local views; 0: only the two global ones."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Minimum and maximum fraction of the image that a global view shows."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Minimum and maximum fraction of the image that a local view shows."""


class DINOPreset(Preset):
    """DINO's two global views, different as in BYOL, and local ones (Caron et al., https://arxiv.org/abs/2104.14294).

    The paper uses 8 local views by default, and 10 in its best run.
    """

    Options = DINOOptions

    @classmethod
    def views(cls, options: DINOOptions, size: int) -> list[dict[str, Any]]:
        """Raises UserError if local views would not be smaller than global ones."""
        global_view = {**COMMON, "crop_scale": list(options.global_scale)}
        return [
            {**global_view, "blur": 1.0},
            {**global_view, "blur": 0.1, "solarize": 0.2},
            *local_views(options, size, {**COMMON, "blur": 0.5}),
        ]
