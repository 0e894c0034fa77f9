"""Objects instead of names: a module as backbone, a dataset, callbacks, plugin classes.

There is one schema, the config's. An object is registered as a plugin `python:CLASS` for as long as it is needed, and a
section that holds it becomes one that names it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, NoReturn

from sslcli.config.data_section import IMAGES
from sslcli.config.schema import PLUGIN_SECTIONS
from sslcli.contracts.errors import UserError
from sslcli.plugins import PYTHON, contracts, get_group

from .views import ViewObjects

if TYPE_CHECKING:
    from sslcli.data.objects.given import Given

log = logging.getLogger(__name__)

#: Plugin classes by group and name.
Classes = dict[tuple[str, str], type]


class Objects:
    """The objects that a Python program gives for one run, by the names that its config uses.

    Attributes:
        classes: for `plugins.registered`.
        given: the user's datasets by split.
        views: the user's callables on images.
    """

    def __init__(self, labeled: tuple[Any, Any] | None = None) -> None:
        self.classes: Classes = {}
        self.given: dict[str, Given] = {}
        self.views = ViewObjects(self._keep)
        if labeled is not None and not (isinstance(labeled, tuple | list) and len(labeled) == 2):
            raise UserError("labeled: should be a pair of datasets (train, test)")
        self._labeled = labeled

    def sections(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns sections as plain data; the objects in them are kept here.

        Raises:
            UserError: an object that its section cannot hold.
        """
        plain: dict[str, Any] = {}
        for section, value in values.items():
            if value is None:
                continue
            if section in PLUGIN_SECTIONS:
                plain[section] = self._choice(section, value)
            elif section == "callbacks":
                plain[section] = self._callbacks(value)
            else:
                plain[section] = as_plain(section, self.views.named(value) if section == "views" else value)
        normalization = self.views.normalization()
        if normalization:
            plain["data"] = {**normalization, **plain.get("data", {})}
        if self._labeled is not None and not self.given:
            raise UserError("labeled: needs a dataset that is given as an object; a named one has its own labels")
        return plain

    def _choice(self, section: str, value: Any) -> dict[str, Any]:
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = options.pop("name", None)
        plain = as_plain(section, options)
        if section == "data" and isinstance(name, PathLike):
            return {"name": IMAGES, "root": fspath(name), **plain}
        if name is None or isinstance(name, str):
            return plain if name is None else {"name": name, **plain}
        group = PLUGIN_SECTIONS[section]
        if isinstance(name, type) and issubclass(name, contracts(get_group(group))):
            return {"name": self._keep(group, name), **plain}
        if section == "data" and not isinstance(name, type):
            pair = dict(zip(("labeled", "test"), self._labeled, strict=True)) if self._labeled is not None else {}
            name, classes, self.given = data_classes({"train": name, **pair})
            self.classes |= classes
            train = self.given["train"]
            files = {"files": train.dataset.digest} if hasattr(train.dataset, "digest") else {}
            return {"name": name, "count": train.length, **files, **plain}
        if section != "backbone":
            _refused(section, name)
        return {"name": self._keep(group, _wrapped(name)), **plain}

    def _callbacks(self, value: Any) -> dict[str, Any]:
        """Callbacks as in the config (options by name), or a list of objects, classes and names."""
        if isinstance(value, Mapping):
            value = [{name: options} for name, options in value.items()]
        elif isinstance(value, str) or not isinstance(value, Iterable):
            raise UserError("callbacks: should be a list of objects and names, or a mapping of names to options")
        plain: dict[str, Any] = {}
        for each in value:
            if isinstance(each, str):
                plain[each] = {}
            elif not isinstance(each, Mapping):
                plain[self._keep("callbacks", _callback(each))] = {}
            else:
                for name, options in each.items():
                    if options is None or isinstance(options, Mapping):
                        plain[name] = as_plain(f"callbacks.{name}", options)
                    else:
                        plain[self._keep("callbacks", _callback(options), name)] = {}
        return plain

    def worker_obstacles(self) -> list[tuple[str, str]]:
        """Returns which objects cannot be sent to worker processes (`data: X is read`), and why."""
        from sslcli.data.objects.given import worker_obstacle

        train = self.given.get("train")
        objects = [] if train is None else [(f"data: {train.title} is read", worker_obstacle(train))]
        objects += [(f"views: {each.title} is called", worker_obstacle(each)) for each, _ in self.views.transforms]
        return [(what, obstacle) for what, obstacle in objects if obstacle is not None]

    def _keep(self, group: str, cls: type, name: str = "") -> str:
        name = name or cls.__name__
        free, number = name, 2
        while self.classes.get((group, free), cls) is not cls:
            free, number = f"{name}-{number}", number + 1
        self.classes[group, free] = cls
        return f"{PYTHON}:{free}"


def data_classes(datasets: Mapping[str, Any], name: str = "") -> tuple[str, Classes, dict[str, Given]]:
    """Wraps datasets by split (`train`, `labeled`, `test`); returns their common name and the classes to register.

    An object used for two splits is inspected and read only once.
    """
    from sslcli.data.objects.given import Given
    from sslcli.data.objects.listed import as_dataset
    from sslcli.data.objects.wrapped import wrap_datasets

    seen: dict[int, Given] = {}
    for dataset in datasets.values():
        if id(dataset) not in seen:
            known = as_dataset(dataset)
            seen[id(dataset)] = Given(known, f"{PYTHON}:{type(known).__name__}")
    given = {split: seen[id(dataset)] for split, dataset in datasets.items()}
    name = name or type(next(iter(given.values())).dataset).__name__
    return f"{PYTHON}:{name}", {("datasets", name): wrap_datasets(given)}, given


def by_key(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns options by dotted key as plain data; UserError if they are not a mapping."""
    if not isinstance(overrides or {}, Mapping):
        raise UserError(f"overrides: should be a mapping of options by dotted key, not a {type(overrides).__name__}")
    plain: dict[str, Any] = as_plain("overrides", dict(overrides or {}))
    return plain


def as_plain(section: str, value: Any) -> Any:
    """Returns a value as YAML could hold it: tuples become lists, paths strings, 0-dim arrays numbers.

    Raises:
        UserError: it holds an object that a config cannot hold.
    """

    def plain(one: Any) -> Any:
        if isinstance(one, PathLike):
            return fspath(one)
        if getattr(one, "ndim", None) == 0:
            return one.item()
        if hasattr(one, "tolist"):
            return one.tolist()
        raise UserError(f"{section}: a config cannot hold an object of type {type(one).__name__}; use plain values")

    return json.loads(json.dumps(value, default=plain))


def _wrapped(module: Any) -> type:
    from torch import nn

    from sslcli.backbones.wrapped import wrap

    if isinstance(module, type) and issubclass(module, nn.Module):
        raise UserError(f"backbone: give an instance, not the class: {module.__name__}(…)")
    if not isinstance(module, nn.Module):
        _refused("backbone", module)
    return wrap(module, f"{PYTHON}:{type(module).__name__}")


def _callback(value: Any) -> type:
    from .callbacks import hold

    if isinstance(value, type):
        return value if issubclass(value, contracts(get_group("callbacks"))) else _refused("callbacks", value)
    return hold(value)


def _refused(section: str, value: Any) -> NoReturn:
    group = get_group(PLUGIN_SECTIONS.get(section, section))
    wanted = " or ".join(contract.__name__ for contract in contracts(group))
    what = f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
    more = {"backbone": ", or any nn.Module", "data": ", or any object with __len__ and __getitem__"}.get(section, "")
    raise UserError(f"{section}: should be a name, a mapping with `name`, a subclass of {wanted}{more}; not {what}")
