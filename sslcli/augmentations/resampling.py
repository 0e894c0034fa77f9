"""Base of `crop` and `resize`: two batched matrix products turn source images into views of one size.

The products (see `matrices`, and for large views on a CPU `bands`) agree with PIL to one 8-bit level, and include a
horizontal flip that follows. In a worker process, where images differ in size, images are resized one at a time by
torch's antialiased filters on uint8, which are the same filters.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .bands import filter_blocks, multiply_blocks, uses_bands
from .matrices import filter_matrix, multiply

Interpolation = Literal["bilinear", "bicubic"]


class ResamplingOptions(Options):
    interpolation: Interpolation = "bilinear"
    """The filter: `bilinear` or `bicubic`; both antialiased."""


class Resampling(Operation):
    """A geometric operation that is one filter along the rows and one along the columns.

    Its parameters are `rows` and `columns`, (N, 4) float32 as `filter_matrix` takes them, and optionally `mirror`, (N,)
    bool, for a flip.
    """

    Options = ResamplingOptions
    geometric = True
    options: ResamplingOptions

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        height, width = images.shape[-2:]
        cubic = self.options.interpolation == "bicubic"
        spans, mirror = torch.cat([parameters["rows"], parameters["columns"]]), parameters.get("mirror")
        if mirror is not None:
            mirror = torch.cat([torch.zeros_like(mirror), mirror])
        if uses_bands(images, self.size):
            blocks = filter_blocks(spans, self.size, cubic, mirror)
            return multiply_blocks(blocks[: len(images)], images, blocks[len(images) :], self.size, clip=cubic)
        # Both in one pass; a pixel beyond the shorter side is outside its spans, and its weight 0.
        rows, columns = filter_matrix(spans, self.size, max(height, width), cubic, mirror).chunk(2)
        return multiply(rows[..., :height], images.float(), columns[..., :width] / 255, clip=cubic)

    def _resize(self, image: Tensor, height: int, width: int) -> Tensor:
        """(C, H, W) uint8 → (C, height, width) uint8, with the same filters."""
        if image.shape[1:] == (height, width):
            return image.contiguous()
        mode = self.options.interpolation
        return F.interpolate(image[None], (height, width), mode=mode, align_corners=False, antialias=True)[0]
