"""Which layer of a backbone each parameter belongs to, for learning rates that depend on depth."""

from __future__ import annotations

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError


def parameter_depths(backbone: Backbone) -> dict[str, int]:
    """Returns the depth of every parameter, by the names and in the order of `backbone.named_parameters()`.

    With n layers (`Backbone.layer_modules`), depth i is layer i, counted from 1; what precedes the first in that order
    has depth 0 (patch embedding, class token, positions, a stem), and what follows has n + 1 (a final norm), which is
    the depth of a classifier too. So MAE numbers them, and BEiT (https://arxiv.org/abs/2106.08254).

    Raises:
        UserError: the backbone does not say what its layers are.
    """
    layers = backbone.layer_modules()
    if not layers:
        raise UserError(
            "layer_decay: this backbone has no layers to tell apart; take a ViT or a ResNet, or leave it out"
        )
    inside = {id(parameter): i for i, layer in enumerate(layers, start=1) for parameter in layer.parameters()}
    depths: dict[str, int] = {}
    outside = 0
    for name, parameter in backbone.named_parameters():
        depths[name] = inside.get(id(parameter), outside)
        if id(parameter) in inside:
            outside = len(layers) + 1
    return depths


def layer_multipliers(decay: float, layers: int) -> list[float]:
    """Returns decay^(n + 1 − i) for the depths i = 0, …, n + 1 of a backbone with n layers."""
    return [decay ** (layers + 1 - depth) for depth in range(layers + 2)]
