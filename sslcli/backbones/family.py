"""What the built-in backbones share: classes from a table of sizes, and maps as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from sslcli.contracts.backbone import Backbone, Features

BackboneT = TypeVar("BackboneT", bound=Backbone)


def member(base: type[BackboneT], class_name: str, about: str, **attributes: Any) -> type[BackboneT]:
    """Returns a subclass of `base` with the docstring `about`; picklable where its module calls it `class_name` too."""
    return type(class_name, (base,), {"__doc__": about, "__module__": base.__module__, **attributes})


def features_of_maps(pooled: Tensor, maps: Sequence[Tensor]) -> Features:
    """Returns pooled features (N, D) with maps (N, E, rows, columns) as tokens and layers, the last one at the end."""
    layers = tuple((None, each.flatten(2).transpose(1, 2)) for each in maps)
    rows, columns = maps[-1].shape[-2:]
    return Features(pooled, layers[-1][1], (rows, columns), layers)
