"""Callables on an image, such as torchvision's transforms, and operation classes in a `views` section."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sslcli.contracts.errors import UserError
from sslcli.plugins import PYTHON, PluginError, contracts, get_group, load

if TYPE_CHECKING:
    from sslcli.data.objects.transforms import Transform

log = logging.getLogger(__name__)


class ViewObjects:
    """The callables of one run, each a plugin.

    Attributes:
        transforms: each, with the operation that a config names it by.
    """

    def __init__(self, keep: Callable[[str, type], str]) -> None:
        """`keep` registers a class of a group and returns its name."""
        self._keep = keep
        self.transforms: list[tuple[Transform, dict[str, Any]]] = []
        self._statistics: list[tuple[list[float], list[float]]] = []

    def named(self, value: Any, key: str = "views") -> Any:
        """Returns a section with names instead of classes, and views or operations of a view instead of callables."""
        if isinstance(value, Mapping):
            plain = {name: self.named(each, name) for name, each in value.items()}
            operations = value.get("operations")
            return {**self._size_of(operations[0]), **plain} if isinstance(operations, list) and operations else plain
        if isinstance(value, list | tuple):
            return [self._view(each) if key == "views" and _is_call(each) else self.named(each, key) for each in value]
        if isinstance(value, type) and issubclass(value, contracts(get_group("augmentations"))):
            return self._keep("augmentations", value)
        if isinstance(value, type):
            raise UserError(f"views: give an instance, not the class: {value.__name__}(…)")
        if not _is_call(value):
            return value
        return [self._view(value)] if key == "views" else self._operation(value)

    def normalization(self) -> dict[str, list[float]]:
        """Returns mean and std of the transforms that end in a `Normalize`, as options of the data.

        Raises:
            UserError: they differ.
        """
        if not self._statistics:
            return {}
        if any(each != self._statistics[0] for each in self._statistics):
            raise UserError("views: the transforms normalize by different mean and std: leave Normalize out of them")
        mean, std = self._statistics[0]
        log.info(f"views: sslcli normalizes, by the mean {mean} and std {std} of the Normalize at a transform's end")
        return {"mean": mean, "std": std}

    def _view(self, call: Any) -> dict[str, Any]:
        return {"operations": [self._operation(call)], **self._size_of(call)}

    def _operation(self, call: Any) -> dict[str, Any]:
        from sslcli.data.objects.transforms import Transform, without_normalize, wrap_transform

        for known, operation in self.transforms:
            if known.given is call:
                return operation
        inner, statistics = without_normalize(call)
        if statistics is not None:
            self._statistics.append(statistics)
        kind = getattr(call, "__name__", type(call).__name__).strip("<>")
        transform = Transform(inner, f"{PYTHON}:{kind}", call)
        operation = {"name": self._keep("augmentations", wrap_transform(transform)), "about": transform.about}
        self.transforms.append((transform, operation))
        return operation

    def _size_of(self, call: Any) -> dict[str, int]:
        """The side of the view that a callable makes, if it makes one of its own."""
        self._operation(call) if _is_call(call) else None
        side = next((known.side() for known, _ in self.transforms if known.given is call), None)
        return {} if side is None else {"size": side}


def count_views(config: dict[str, Any]) -> None:
    """Sets how many views a callable makes that is the only one: as many as the method needs.

    Args:
        config: plain data, with the names of callables.
    """
    method = config.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    section = config.get("views")
    phases = section.get("phases") if isinstance(section, Mapping) else None
    sections = [phase.get("views") for phase in phases if isinstance(phase, Mapping)] if phases else [section]
    for views in sections:
        only = views[0] if isinstance(views, list) and len(views) == 1 and isinstance(views[0], dict) else {}
        first = next(iter(only.get("operations") or [None]))
        if not isinstance(first, Mapping) or "about" not in first or "count" in only or not isinstance(name, str):
            continue
        try:
            cls = load("methods", name)
        except PluginError:  # reported with all other problems
            return
        only["count"] = cls.view_count or cls.minimum_views


def _is_call(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)
