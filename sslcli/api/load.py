"""`load_backbone`: the network of a run or a file, for use in a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from sslcli.contracts.errors import UserError
from sslcli.logs import on_console
from sslcli.plugins import PYTHON, registered

from .run import classes_of, path_of

if TYPE_CHECKING:
    from torch import nn

    from sslcli.contracts.backbone import Backbone

    from .run import Target


@overload
def load_backbone(path: Target, into: None = None) -> Backbone: ...
@overload
def load_backbone(path: Target, into: nn.Module) -> nn.Module: ...
def load_backbone(path: Target, into: nn.Module | None = None) -> nn.Module:
    """Loads a trained backbone, from a file alone.

    Args:
        path: a backbone file (`backbone.safetensors`), a checkpoint, a run directory, or a `Run`.
        into: for a backbone that was given as a module: a module like it, on the CPU, which receives the weights. A
            classifier that was cut off for training is cut off from it too.

    Returns:
        the module, on the CPU, in `eval()`; called with normalized images (N, C, H, W) it returns `Features`, whose
        `pooled` is (N, D). For a backbone that was given as a module: `into`, or for a `Run` a copy of the given one.

    Raises:
        sslcli.contracts.errors.UserError: no such file, a damaged one, a backbone whose plugin is not installed, or one
            that was given as a module while `into` is missing.
    """
    from sslcli.backbones.wrapped import WrappedBackbone, wrap
    from sslcli.runs.trained import load_trained, stored_card

    file, classes = path_of(path), classes_of([path], {})
    if into is not None:
        name = str(stored_card(file).backbone.get("name"))
        if not name.startswith(f"{PYTHON}:"):
            raise UserError(f"{file}: its backbone is {name!r}, which needs no module to be loaded into")
        classes["backbones", name.removeprefix(f"{PYTHON}:")] = wrap(into, name, in_place=True)
    with on_console(), registered(classes):
        backbone = load_trained(file).backbone
    return backbone.network if isinstance(backbone, WrappedBackbone) else backbone
