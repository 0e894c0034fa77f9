"""The preset `dino`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sslcli.contracts.views import Preset

from .multicrop import MultiCropOptions, local_views


class DINOOptions(MultiCropOptions):
    """The same with DINO's defaults."""

    local_count: int = Field(default=8, ge=0)
    """How many local views are made; 0: the two global ones alone."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of the image that a global view shows."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Smallest and largest share of the image that a local view shows."""


class DINOPreset(Preset):
    """DINO's two global views, unlike as BYOL's, and eight local ones (Caron et al., https://arxiv.org/abs/2104.14294).

    The paper has 10 local views in its best run, and 8 by default.
    """

    Options = DINOOptions

    @classmethod
    def views(cls, options: DINOOptions, size: int) -> list[dict[str, Any]]:
        """Raises UserError if local views would not be smaller than global ones."""
        shared = {
            "interpolation": "bicubic",
            "flip": 0.5,
            "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
            "grayscale": 0.2,
        }
        scale = list(options.global_scale)
        views = [
            {"count": 1, "crop_scale": scale, **shared, "blur": blur, "solarize": solarize}
            for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
        ]
        return views + local_views(options, size, {**shared, "blur": 0.5})
