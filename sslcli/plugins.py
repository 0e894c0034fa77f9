"""Finds and loads plugins: a name in a group → a class, through entry points and nothing else.

A *found* plugin is a line in a package's metadata; nothing of the package has been imported. `load` imports it. The
project's own plugins are found in the same way as any other package's. Classes without a package are added by
`register_file` (for the command line) and `registered` (for the Python API).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslcli.contracts.errors import PluginError as PluginError
from sslcli.storage import expanded, read_regular

from .foreign import failures


@dataclass(frozen=True)
class Group:
    """A plugin group: what one member is called, and what its classes inherit from (`method:Method`)."""

    name: str
    noun: str
    contracts: tuple[str, ...]

    @property
    def entry_points(self) -> str:
        return f"sslcli.{self.name}"


#: By short name.
GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        Group("methods", "method", ("method:Method",)),
        Group("backbones", "backbone", ("backbone:Backbone", "backbone:BackboneProvider")),
        Group("datasets", "dataset", ("data:Dataset", "data:StreamDataset")),
        Group("augmentations", "view operation or preset", ("views:Operation", "views:Preset")),
        Group("optimizers", "optimizer", ("optimizer:OptimizerPlugin",)),
        Group("schedules", "schedule", ("optimizer:Schedule",)),
        Group("evaluators", "evaluator", ("evaluation:Evaluator",)),
        Group("exporters", "exporter", ("export:Exporter",)),
        Group("callbacks", "callback", ("callback:Callback",)),
    )
}


@dataclass(frozen=True, order=True)
class FoundPlugin:
    """A plugin that a package registers; not yet imported."""

    name: str
    package: str
    version: str
    target: str
    group: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.target})"


#: Classes without a package; of equal ones the last counts.
_registered: list[tuple[FoundPlugin, type]] = []
#: The "package" of what a Python program has given as an object: `python:MyNet`.
PYTHON = "python"
_GIVE_AGAIN = {
    "backbones": "load it with sslcli.load_backbone(path, into=module), or pass it again: sslcli.Run(path, backbone=…)",
    "datasets": "pass it again in Python, or choose other data with data.name=…",
    "callbacks": "pass it again in Python, or disable it with null",
}


def get_group(name: str) -> Group:
    """Returns the group called `name` (`methods`, or in full `sslcli.methods`); PluginError for any other name."""
    short = name.removeprefix("sslcli.")
    if short not in GROUPS:
        raise PluginError(f"unknown plugin group {name!r}{suggest(short, list(GROUPS), otherwise=True)}")
    return GROUPS[short]


def suggest(name: str, known: list[str], *, otherwise: bool = False) -> str:
    """Returns `; did you mean …?`; where no name is close, an empty string, or with `otherwise` the whole list."""
    known = sorted(set(known))  # a preset's option and a short key can have one name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        alike = [difflib.SequenceMatcher(None, other, name).ratio() for other in near]
        near = [other for other, ratio in zip(near, alike, strict=True) if ratio > alike[0] - 0.1]
        return f"; did you mean {' or '.join(near)}?"
    return f"; available: {', '.join(known) or 'none'}" if otherwise else ""


@functools.cache
def _installed() -> tuple[FoundPlugin, ...]:
    found: list[FoundPlugin] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            # Only the names of those that have plugins are read: the metadata of a hundred packages take a tenth of a
            # second to parse.
            if "sslcli." not in (distribution.read_text("entry_points.txt") or ""):
                continue
            package = distribution.metadata["Name"]
            if _normal(package) in seen:
                continue
            seen.add(_normal(package))
            # On the path twice (an editable and a wheel install) it is no clash: Python imports the first.
            first = importlib.metadata.distribution(package)
            entries, version = first.entry_points, first.version  # each access parses
            ours = [entry for entry in entries if entry.group.startswith("sslcli.")]
            found += [FoundPlugin(entry.name, package, version, entry.value, entry.group) for entry in ours]
        except Exception:  # unreadable metadata must not affect other packages
            continue
    return tuple(sorted(found))


def _normal(package: str) -> str:
    """The name that packaging tools compare: `My_Package` and `my-package` are one."""
    return re.sub(r"[-_.]+", "-", package).lower()


def clear_cache() -> None:
    """Forgets what was found and registered (for tests that change the path)."""
    _installed.cache_clear()
    _registered.clear()


def find(group: str) -> list[FoundPlugin]:
    """Lists the plugins of a group, sorted, importing none of them; without the objects of a Python program."""
    full = get_group(group).entry_points
    files = [plugin for plugin, _ in _registered if plugin.package != PYTHON]
    return sorted(plugin for plugin in [*_installed(), *files] if plugin.group == full)


def choose(group: str, name: str) -> FoundPlugin:
    """Returns the one plugin that `name` (`NAME` or `PACKAGE:NAME`) means; PluginError if there is none or two."""
    info = get_group(group)
    package, _, plain = name.rpartition(":")
    if package == PYTHON:
        for plugin, _ in reversed(_registered):
            if (plugin.package, plugin.group, plugin.name) == (PYTHON, info.entry_points, plain):
                return plugin
        advice = _GIVE_AGAIN.get(info.name, "pass it again in Python")
        raise PluginError(f"{info.noun} {name!r} was an object in the Python program that trained this run: {advice}")
    candidates = [p for p in find(group) if p.name == plain and _normal(package) in ("", _normal(p.package))]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        known = [plugin.name for plugin in find(group)]
        raise PluginError(f"unknown {info.noun} {name!r}{suggest(plain, known, otherwise=True)}")
    choices = " or ".join(f"{p.package}:{p.name}" for p in candidates)
    packages = " and ".join(str(p) for p in candidates)
    raise PluginError(f"{info.noun} {plain!r} is registered by {packages}; write {choices}")


@contextmanager
def registered(classes: Mapping[tuple[str, str], type]) -> Iterator[None]:
    """Registers classes for a `with` block: `("backbones", "MyNet")` is found as `python:MyNet`, never as `MyNet`."""
    now = [
        (FoundPlugin(name, PYTHON, "", f"{cls.__module__}:{cls.__qualname__}", get_group(group).entry_points), cls)
        for (group, name), cls in classes.items()
    ]
    _registered.extend(now)
    try:
        yield
    finally:
        for one in now:
            if one in _registered:  # not if the block has cleared the list
                _registered.remove(one)


def load_found(plugin: FoundPlugin) -> type:
    """Imports a found plugin; PluginError, naming the package, if that fails or it does not belong in its group."""
    given = dict(_registered).get(plugin)
    if given is not None:
        return given
    info = get_group(plugin.group)
    with failures(f"{info.noun} {plugin.name!r} of {plugin} cannot be loaded"):
        loaded = importlib.metadata.EntryPoint(plugin.name, plugin.target, plugin.group).load()
    if not (isinstance(loaded, type) and issubclass(loaded, contracts(info))):
        wanted = " or ".join(each.__name__ for each in contracts(info))
        raise PluginError(f"{info.noun} {plugin.name!r} of {plugin} is not a subclass of {wanted}")
    return loaded


def module_of(plugin: FoundPlugin) -> str:
    """Returns the name of the module that a plugin's code is in, without importing it."""
    given = dict(_registered).get(plugin)
    return plugin.target.partition(":")[0] if given is None else given.__module__


def member_names(provider: Any, name: str) -> list[str]:
    """Returns what a provider of many has, sorted; PluginError, with its `name`, if its own code fails."""
    with failures(f"backbone provider {name!r} cannot be loaded"):
        return sorted(provider.names())


def load(group: str, name: str) -> Any:
    """Returns the class that `name` means: `NAME`, `PACKAGE:NAME`, or for a provider of many `PROVIDER/NAME`.

    Raises:
        PluginError: unknown name (with the nearest ones), two packages with this name, or a broken package.
    """
    provider, slash, rest = name.partition("/")
    info, cls = get_group(group), load_found(choose(group, provider))
    if info.name != "backbones" or not issubclass(cls, contracts(info)[1]):
        if slash:
            raise PluginError(f"{provider!r} is a single {info.noun}; write {provider} without /{rest}")
        return cls
    many: Any = cls
    known = member_names(many, name)
    if rest in known:
        with failures(f"{info.noun} provider {name!r} cannot be loaded"):
            return many.get(rest)
    if not rest:
        example = f", such as {provider}/{known[0]}" if known else ""
        raise PluginError(f"{provider!r} provides many; write {provider}/NAME{example}")
    near = suggest(name, [f"{provider}/{each}" for each in known])
    raise PluginError(f"{info.noun} provider {provider!r} has no {rest!r}{near}")


def contracts(group: Group) -> tuple[type, ...]:
    """Returns what the plugins of a group inherit from."""
    return tuple(pkgutil.resolve_name(f"sslcli.contracts.{each}") for each in group.contracts)


@dataclass(frozen=True)
class PluginFile:
    """A file of unpackaged plugin classes: where it is, its sha256, and what it registered."""

    path: Path
    sha256: str
    plugins: tuple[FoundPlugin, ...]


def register_file(path: Path) -> PluginFile:
    """Runs a Python file and registers the plugin classes that it defines.

    A class is registered under its attribute `plugin_name`, or else under its own name in snake case. The file stands
    for a package (`my_method.py` → package `my_method`). PluginError if there is no such file, it fails, or it defines
    no plugin class.
    """
    path = expanded(path)
    try:
        source = read_regular(path)
    except OSError as error:
        raise PluginError(f"--plugin {path}: cannot be read ({error.strerror or error})") from error
    digest = hashlib.sha256(source).hexdigest()
    module_name = f"sslcli_plugin_{digest[:16]}"
    again = tuple(plugin for plugin, cls in _registered if cls.__module__ == module_name and plugin.package != PYTHON)
    if again:  # named twice, or in an earlier call from Python
        return PluginFile(path, digest, again)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugin {path}: is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # classes must be found by name, for pickling to worker processes
    try:
        with failures(f"--plugin {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    classes = inspect.getmembers(module, lambda each: inspect.isclass(each) and each.__module__ == module_name)
    defined = []
    for group in GROUPS.values():
        for name, cls in classes:
            if issubclass(cls, contracts(group)) and not inspect.isabstract(cls):
                public = getattr(cls, "plugin_name", None)
                if public is not None and not isinstance(public, str):
                    raise PluginError(f"--plugin {path}: the plugin_name of {name} should be a string, not {public!r}")
                public = public or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
                plugin = FoundPlugin(public, path.stem, digest[:8], f"{path.name}:{name}", group.entry_points)
                defined.append((plugin, cls))
    if not defined:
        raise PluginError(f"--plugin {path}: defines no plugin class (a subclass of Method, Backbone, Dataset, …)")
    _registered.extend(defined)
    return PluginFile(path, digest, tuple(plugin for plugin, _ in defined))
