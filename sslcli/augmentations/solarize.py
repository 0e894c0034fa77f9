"""The operation `solarize`, for any number of channels."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters

from .selected import on_chosen, select


class SolarizeOptions(Options):
    p: float = Field(default=0.2, ge=0, le=1)
    """Fraction of samples that are solarized."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Values at or above this threshold are inverted; images are in [0, 1]."""


class Solarize(Operation):
    """Inverts bright values (Grill et al., *BYOL*, appendix B)."""

    Options = SolarizeOptions
    drawn = frozenset({"p"})
    draws = 1
    options: SolarizeOptions

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"chosen": uniform[:, 0] < self.options.p}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        threshold = self.options.threshold
        return on_chosen(lambda x: select(x >= threshold, 1 - x, x), images, parameters["chosen"])
