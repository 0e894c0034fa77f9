"""What the built-in backbones share: classes from a table of sizes, maps as tokens, and the errors for masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError

BackboneT = TypeVar("BackboneT", bound=Backbone)


def member(base: type[BackboneT], class_name: str, about: str, **attributes: Any) -> type[BackboneT]:
    """Returns a subclass of `base` with the docstring `about`; picklable where its module calls it `class_name` too."""
    return type(class_name, (base,), {"__doc__": about, "__module__": base.__module__, **attributes})


def refuse_masks(name: str, *arguments: Tensor | None) -> None:
    """Raises UserError if a mask, its token or a subset of patches is given to the backbone of this name."""
    if any(each is not None for each in arguments):
        raise UserError(
            f"backbone: {name} cannot leave out patches: a method that hides them needs a vision transformer, such as "
            "vit_small"
        )


def refuse_layers(name: str, layers: int, most: int = 1) -> None:
    """Raises UserError if other layers are asked for than the backbone of this name has."""
    if not 1 <= layers <= most:
        there = f"of 1 to {most} layers" if most > 1 else "of its last layer only"
        raise UserError(f"backbone: {name} has the outputs {there}, not of {layers}")


def features_of_maps(pooled: Tensor, maps: Sequence[Tensor]) -> Features:
    """Returns pooled features (N, D) with maps (N, E, rows, columns) as tokens and layers, the last one at the end."""
    layers = tuple((None, each.flatten(2).transpose(1, 2)) for each in maps)
    rows, columns = maps[-1].shape[-2:]
    return Features(pooled, layers[-1][1], (rows, columns), layers)
