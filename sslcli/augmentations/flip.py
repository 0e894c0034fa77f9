"""The operation `flip`, for any number of channels."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .selected import on_chosen


class FlipOptions(Options):
    p: float = Field(default=0.5, ge=0, le=1)
    """Fraction of samples that are flipped."""


class Flip(Operation):
    """Horizontal flip; directly after a crop or resize it costs nothing, since that operation does both."""

    Options = FlipOptions
    drawn = frozenset({"p"})
    draws = 1
    options: FlipOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"chosen": uniform[:, 0] < self.options.p}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return on_chosen(lambda x: x.flip(-1), images, parameters["chosen"])
