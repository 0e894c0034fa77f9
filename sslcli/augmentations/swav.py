"""The preset `swav`."""

from __future__ import annotations

from typing import Any

from sslcli.contracts.views import Preset

from .local_views import MultiCropOptions, local_views


class SwAVPreset(Preset):
    """SwAV's two global and six local views (Caron et al., https://arxiv.org/abs/2006.09882, appendix A.3)."""

    Options = MultiCropOptions

    @classmethod
    def views(cls, options: MultiCropOptions, size: int) -> list[dict[str, Any]]:
        """Raises UserError if local views would not be smaller than global ones."""
        shared = {
            "interpolation": "bilinear",
            "flip": 0.5,
            "jitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8},
            "grayscale": 0.2,
            "blur": 0.5,
        }
        global_views = {**shared, "count": 2, "crop_scale": list(options.global_scale)}
        return [global_views, *local_views(options, size, shared)]
