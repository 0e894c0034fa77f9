"""What the built-in backbones share: classes from a table of sizes, shapes of given weights, and maps as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError
from sslcli.storage import expanded
from sslcli.weight_files import is_torch_file, named_weights, read_torch

#: Images up to this side, in pixels, are small.
SMALL = 64

BackboneT = TypeVar("BackboneT", bound=Backbone)


def member(base: type[BackboneT], class_name: str, about: str, **attributes: Any) -> type[BackboneT]:
    """Returns a subclass of `base` with the docstring `about`; picklable where its module calls it `class_name` too."""
    return type(class_name, (base,), {"__doc__": about, "__module__": base.__module__, **attributes})


def given_shape(options: Any, weights: Mapping[str, Tensor] | None, name: str) -> tuple[int, ...] | None:
    """Returns the shape of a tensor in given weights, else in the file that the options name; None if there is none.

    A file that cannot be read is reported when its weights are.
    """
    if weights is not None:
        return tuple(weights[name].shape) if name in weights else None
    if options.weights is None:
        return None
    path = expanded(options.weights)
    if not path.is_file():
        return None
    try:
        if is_torch_file(path):
            found = named_weights(path, read_torch(path), [name]).get(name)
            return None if found is None else tuple(found.shape)
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())
    except (OSError, SafetensorError, UserError):
        return None


def features_of_maps(pooled: Tensor, maps: Sequence[Tensor]) -> Features:
    """Returns pooled features (N, D) with maps (N, E, rows, columns) as tokens and layers, the last one at the end."""
    layers = tuple((None, each.flatten(2).transpose(1, 2)) for each in maps)
    rows, columns = maps[-1].shape[-2:]
    return Features(pooled, layers[-1][1], (rows, columns), layers)
