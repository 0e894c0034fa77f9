"""Multi-crop: a few global views that show most of the image, and many small local ones.

Caron et al. (SwAV), https://arxiv.org/abs/2006.09882, section 3.3; Caron et al. (DINO),
https://arxiv.org/abs/2104.14294, section 3.1.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from sslcli.contracts.errors import UserError
from sslcli.contracts.views import PresetOptions

#: Side of a local view over that of a global one, in both papers.
LOCAL_SHARE = 96 / 224


class MultiCropOptions(PresetOptions):
    """Options of multi-crop with SwAV's defaults."""

    local_count: int = Field(default=6, ge=0, le=1000)
    """Number of local views; 0: only the two global ones."""
    local_size: int | None = Field(default=None, ge=1)
    """Side of a local view in pixels; null: 96/224 of a global view's side, rounded to a multiple of
    `local_multiple`."""
    local_multiple: int = Field(default=1, ge=1)
    """The side of local views is a multiple of this: set it to the patch size of a ViT."""
    global_scale: tuple[float, float] = (0.14, 1.0)
    """Minimum and maximum fraction of the image that a global view shows."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Minimum and maximum fraction of the image that a local view shows."""

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two fractions of the image in ascending order, above 0 and at most 1")
        return value

    @model_validator(mode="after")
    def _size_is_multiple(self) -> Self:
        if self.local_size is not None and self.local_size % self.local_multiple:
            raise ValueError(f"local_size {self.local_size} is not a multiple of local_multiple {self.local_multiple}")
        return self


def local_views(options: MultiCropOptions, size: int, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the local views: a list of one specification with the `shared` keys, or an empty one.

    Raises:
        UserError: local views would not be smaller than global ones, whose side is `size` pixels.
    """
    if options.local_count == 0:
        return []
    multiple = options.local_multiple
    side = options.local_size or max(round(size * LOCAL_SHARE / multiple), 1) * multiple
    if side >= size:
        raise UserError(
            f"views: local views of {side} px must be smaller than the global ones of {size} px: set views.size, "
            "views.local_size or views.local_multiple, or views.local_count=0 for none"
        )
    return [{**shared, "count": options.local_count, "size": side, "crop_scale": list(options.local_scale)}]
