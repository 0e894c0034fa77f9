"""What the built-in backbones share: classes from a table of sizes, and the error for masks."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError

BackboneT = TypeVar("BackboneT", bound=Backbone)


def member(base: type[BackboneT], class_name: str, about: str, **attributes: Any) -> type[BackboneT]:
    """Returns a subclass of `base` with the docstring `about`; picklable where its module calls it `class_name` too."""
    return type(class_name, (base,), {"__doc__": about, "__module__": base.__module__, **attributes})


def refuse_mask(mask: Tensor | None, name: str) -> None:
    """Raises UserError if a mask is given to the backbone of this name, which has no tokens."""
    if mask is not None:
        raise UserError(f"backbone: {name} has no tokens to mask: use a backbone with tokens for masked views")
