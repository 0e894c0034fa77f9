"""Makes the backbone classes of one architecture from a table of their sizes."""

from __future__ import annotations

from typing import Any, TypeVar

from sslcli.contracts.backbone import Backbone

BackboneT = TypeVar("BackboneT", bound=Backbone)


def member(base: type[BackboneT], class_name: str, about: str, **attributes: Any) -> type[BackboneT]:
    """Returns a subclass of `base` in the same module.

    Args:
        base: what the sizes have in common.
        class_name: the new class's; to be picklable, it must be the module's name for the class, too.
        about: the docstring, which `ssl list` shows.
        attributes: class attributes such as `name`.
    """
    return type(class_name, (base,), {"__doc__": about, "__module__": base.__module__, **attributes})
