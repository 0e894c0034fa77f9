"""DINO's head: an MLP to a bottleneck, L2 normalization, and cosines with a large number of prototypes.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers*, https://arxiv.org/abs/2104.14294,
section 3.2 and appendix C; weight normalization: Salimans & Kingma, https://arxiv.org/abs/1602.07868.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.optimizer import Role

from .heads import Norm, mlp


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are g·v/‖v‖: direction and length are learned separately.

    Computed in at least float32 regardless of autocast: its outputs are cosines that the loss divides by temperatures
    such as 0.04, where the rounding of bfloat16 would be a tenth of a target.

    Attributes:
        weight: v, (out, in).
        gain: g, (out, 1), 1 at first; None where it is fixed to 1.
    """

    #: Part of the weights, like the gains of torch's own weight normalization.
    parameter_roles: ClassVar[dict[str, Role]] = {"gain": "weight"}

    gain: Tensor | None

    def __init__(self, input_dim: int, output_dim: int, *, fixed_gain: bool = True) -> None:
        """With `fixed_gain` every row keeps length 1, and there are no gain parameters."""
        super().__init__()
        bound = input_dim**-0.5  # as torch's own linear layers, which the authors leave as they are here
        self.weight = nn.Parameter(torch.empty(output_dim, input_dim).uniform_(-bound, bound))
        self.register_parameter("gain", None if fixed_gain else nn.Parameter(torch.ones(output_dim, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) → (N, out), float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
            rows = F.normalize(self.weight.to(dtype), dim=1)
            if self.gain is not None:
                rows = rows * self.gain.to(dtype)
            return F.linear(x.to(dtype), rows)

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{columns}, {rows}, fixed_gain={self.gain is None}"


class DINOHead(nn.Module):
    """`mlp`: linear layers with GELU between them; unit length; `last_layer`: a `WeightNormLinear`.

    The MLP's weights are drawn from a normal distribution with standard deviation 0.02, cut at ±2; its biases are 0.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        prototypes: int,
        layers: int = 3,
        *,
        norm: Norm = "none",
        norm_last_layer: bool = True,
    ) -> None:
        """Args:
        input_dim: D of the features.
        hidden_dim: width between the MLP's layers; unused with one layer.
        bottleneck_dim: length of the vectors that are normalized.
        prototypes: K, number of logits.
        layers: linear layers of the MLP, at least 1.
        norm: what follows each hidden layer, before its GELU.
        norm_last_layer: whether every prototype keeps length 1, so that the logits are cosines.

        Raises:
            ValueError: if there is no layer.
        """
        super().__init__()
        self.mlp = mlp(input_dim, hidden_dim, bottleneck_dim, layers, norm=norm, activation=nn.GELU)
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, prototypes, fixed_gain=norm_last_layer)

    def embed(self, features: Tensor) -> Tensor:
        """Features (N, D) → unit vectors (N, bottleneck_dim), float32 at least: what `last_layer` takes."""
        z: Tensor = self.mlp(features)
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) → logits (N, K), float32 at least; within [−1, 1] with `norm_last_layer`."""
        logits: Tensor = self.last_layer(self.embed(features))
        return logits
