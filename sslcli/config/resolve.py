"""From a document to a `RunConfig`: resolves every name, validates every option, reports all problems at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sslcli.contracts import VERSION
from sslcli.contracts.errors import UserError
from sslcli.storage import expanded

from . import data_section, schema
from .choices import Choice as Choice
from .choices import choose, choose_callbacks, parse_section
from .document import Document, Key
from .meant import unknown
from .merge import read_config
from .problems import Problems, show
from .recipe import settle
from .shortened import fitting, sets_warmup
from .view_phases import ViewPhase, plain_phases, resolve_phases

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """A complete, valid configuration."""

    seed: int
    method: Choice
    backbone: Choice
    data: Choice
    view_phases: tuple[ViewPhase, ...]
    optimizer: Choice
    schedule: Choice
    training: schema.TrainingOptions
    checkpoints: schema.CheckpointOptions
    callbacks: dict[str, Choice]
    output: Path | None = field(default=None, compare=False)
    #: Whether the length of the warm-up is what the config sets, not a default or a part of a shortened run.
    own_warmup: bool = field(default=True, compare=False)
    #: The method of the config file, if an override names another one.
    file_method: str | None = field(default=None, compare=False)

    @property
    def views(self) -> tuple[Any, ...]:
        """`ViewSpec`s with every operation and option: of the first phase, where views change in the run."""
        return self.view_phases[0].views

    def plain(self) -> dict[str, Any]:
        """Returns the config as plain data, without `output`; `resolve` makes an equal config of it."""
        values = {section: getattr(self, section) for section in SECTIONS if section != "output"}
        return {section: value.plain() if hasattr(value, "plain") else value for section, value in values.items()} | {
            "views": plain_phases(self.view_phases),
            "callbacks": {
                name: self.callbacks[name].options.plain() if name in self.callbacks else None
                for name in sorted({*self.callbacks, *schema.DEFAULT_CALLBACKS})
            },
        }

    def digest(self) -> str:
        """Returns 8 hex digits of the resolved config, for the default name of the run directory."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:8]


#: What has no default, and how to write it, by where the config comes from.
_REQUIRED = {
    "method": {
        "file": "`method: simclr`",
        "command line": "`method=simclr`, or another of `ssl list methods`",
        "sslcli.train": '`method="simclr"`, or another of `ssl list methods`',
    },
    "data": {
        "file": "`data: {name: cifar10, root: ./data}`",
        "command line": "`data=FOLDER` with a folder of images, or another of `ssl list datasets`",
        "sslcli.train": '`data="FOLDER"` with a folder of images, another of `ssl list datasets`, or a dataset',
    },
}
SECTIONS = ["views" if each.name == "view_phases" else each.name for each in fields(RunConfig)][:-2]


def load_config(path: Path | None, overrides: list[str], *, follow: bool = True) -> RunConfig:
    """Reads and resolves a config file, if there is one, and overrides (see `read_config`).

    Raises ConfigError with every problem, each as `file:line: key: what is wrong`.
    """
    return resolve(read_config(path, overrides, follow=follow))


def resolve(document: Document) -> RunConfig:
    """Resolves a document; ConfigError with every problem found in it."""
    problems = Problems(document)
    data = _given(document)
    for required, examples in _REQUIRED.items():
        if required not in data:
            problems.add((required,), f"missing; write {examples.get(document.origin(()), examples['file'])}")
    method = choose("method", "methods", data.get("method"), None, problems)
    source = choose("data", "datasets", data_section.found(data.get("data"), problems), None, problems)
    vit = method is not None and "ViT" in method.cls.needs
    usual = schema.DEFAULT_VIT if vit else schema.DEFAULTS["backbone"]
    backbone = choose("backbone", "backbones", data.get("backbone"), usual, problems)
    size = _largest_view(data.get("views"), source)
    backbone, spec = _described(backbone, source, size, problems)
    if vit and spec is not None and not spec.maskable:
        needs = f"{method.name!r} needs a vision transformer, which {backbone.name!r} is not"
        problems.add(("backbone",), f"{needs}; set backbone={usual['name']}, or another of `ssl list backbones`")
    own = _of_method("defaults", method, problems, spec)
    failed, own = own is None, own or {}
    left_out: list[str] = []
    if document.replaced is not None and not failed:
        left_out, data = _settled(document, own, spec), _given(document)
    if own.get("backbone"):
        backbone = _with_defaults(backbone, own["backbone"], data.get("backbone"), problems)
        backbone, changed = _described(backbone, source, size, problems)
        if backbone is not None and changed != spec:
            problems.add(("method",), "the method's defaults change the spec of the backbone")
    defaults = {**schema.DEFAULTS, **own}
    if method is not None and not failed and "optimizer" not in {**data, **defaults}:
        problems.add(("optimizer",), f"missing; {method.name!r} has no default for it")
    optimizer, schedule = (
        choose(section, schema.PLUGIN_SECTIONS[section], data.get(section), defaults.get(section), problems)
        for section in ("optimizer", "schedule")
    )
    asked = data.get("training", {})
    asked = {**defaults.get("training", {}), **asked} if isinstance(asked, dict) else asked
    training = parse_section("training", schema.TrainingOptions, asked, problems)
    checkpoints = parse_section("checkpoints", schema.CheckpointOptions, data.get("checkpoints", {}), problems)
    callbacks = choose_callbacks(data.get("callbacks", {}), problems)
    view_phases = resolve_phases(
        data.get("views"),
        lambda section, key: _views(section, key, method, spec, _largest_view(section, source), problems),
        training and training.epochs,
        problems,
    )
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        problems.add(("seed",), f"should be a whole number from 0, not {show(seed)}")
    chosen = {"method": method, "backbone": backbone, "data": source, "optimizer": optimizer, "schedule": schedule}
    _check_sections(data, chosen, callbacks, problems)
    output = data.get("output")
    if output is not None and not isinstance(output, str):
        problems.add(("output",), f"should be the path of a directory, not {show(output)}")
    problems.raise_any()
    fitted = fitting(schedule.options, training, document)
    own_warmup = sets_warmup(document) and fitted is schedule.options
    schedule = replace(schedule, options=fitted)
    output = None if output is None else expanded(output)
    file_method = None
    if document.replaced is not None:
        origin, file_method = document.replaced[0].origin(("method",)), document.replaced[0].data["method"]["name"]
        if left_out:
            change = f"{method.name.rpartition(':')[2]} in place of {file_method}"
            keys = ", ".join(left_out)
            log.info(f"{origin.rpartition(':')[0]}: {change}: its own recipe replaces {keys} of the file")
    return RunConfig(
        seed=seed, method=method, backbone=backbone, data=source, view_phases=view_phases, optimizer=optimizer,
        schedule=schedule, training=training, checkpoints=checkpoints, callbacks=callbacks, output=output,
        file_method=file_method, own_warmup=own_warmup,
    )  # fmt: skip


def _given(document: Document) -> dict[str, Any]:
    return {key: value for key, value in document.data.items() if value is not None}


def _settled(document: Document, own: Mapping[str, Any], spec: Any) -> list[str]:
    """What the method of the file leaves to the one that an override names; returns what it does not."""
    assert document.replaced is not None
    ignored = Problems(document)
    before = choose("method", "methods", document.replaced[0].data["method"], None, ignored)
    return settle(document, own, _of_method("defaults", before, ignored, spec) or {})


def _check_sections(
    data: Mapping[str, Any], chosen: Mapping[str, Choice | None], callbacks: Mapping[str, Choice], problems: Problems
) -> None:
    """Adds a problem for each section that does not exist, with the option that may be meant."""
    names = [name for name in data if name not in SECTIONS]
    if not names:
        return
    from .views_section import SHORT_KEYS

    every = {(name,): choice for name, choice in chosen.items()} | {
        ("callbacks", name): choice for name, choice in callbacks.items()
    }
    models: dict[Key, Any] = {key: choice.cls.Options for key, choice in every.items() if choice is not None}
    models |= {("training",): schema.TrainingOptions, ("checkpoints",): schema.CheckpointOptions}
    models["views",] = ("size", "preset", "strength", *SHORT_KEYS)
    for name in names:
        origin = problems.document.origin((name,))
        problems.add((name,), unknown(name, data[name], models, SECTIONS, origin))


def _largest_view(section: Any, source: Choice | None) -> int:
    """The side of the largest view that a `views:` section asks for, in any phase, else the default of the data."""
    default = 224 if source is None else int(source.cls.view_size(source.options))
    if isinstance(section, dict) and isinstance(section.get("phases"), list):
        views = [phase.get("views") if isinstance(phase, dict) else None for phase in section["phases"]]
        return max((_largest_view(each, source) for each in views), default=default)
    listed = section if isinstance(section, list) else [section]
    asked = [view.get("size") if isinstance(view, dict) else None for view in listed]
    return max((size if type(size) is int and size > 0 else default for size in asked), default=default)


def _described(backbone: Choice | None, source: Choice | None, size: int, problems: Problems) -> Any:
    """The backbone with what each `auto` comes to, and its spec."""
    if backbone is None:
        return None, None
    try:
        channels = source.cls.channel_count(source.options) if source is not None else 3
        backbone = replace(backbone, options=backbone.cls.fit_options(backbone.options, size))
        return backbone, backbone.cls.describe(backbone.options, channels, size)
    except UserError as error:
        key, _, message = str(error).partition(": ")
        known = key.partition(".")[0] in SECTIONS
        problems.add(tuple(key.split(".")) if known else ("backbone",), message if known else str(error))
    except Exception as error:
        reason = " ".join(str(error).split())
        problems.add(("backbone",), f"{backbone.name!r} cannot be built: {type(error).__name__}: {reason}")
    return backbone, None


def _of_method(what: str, method: Choice | None, problems: Problems, *arguments: Any) -> Any:
    """What the method's `recipe` or `defaults` returns."""
    if method is None or arguments[-1] is None:
        return None  # there is a problem already
    try:
        return getattr(method.cls, what)(method.options, *arguments)
    except Exception as error:
        reason = " ".join(str(error).split())
        problems.add(
            ("method",),
            f"{what} of {method.name!r} failed: {type(error).__name__}: {reason}; this is version {VERSION} of the "
            "contracts (docs/plugins.md)",
        )
        return None


def _with_defaults(
    backbone: Choice | None, defaults: Mapping[str, Any], asked: Any, problems: Problems
) -> Choice | None:
    """The backbone with those of a method's defaults that it has options for, under what the config sets."""
    if backbone is None:
        return None
    known = {name: value for name, value in defaults.items() if name in backbone.cls.Options.model_fields}
    section = {} if asked is None or isinstance(asked, str) else asked
    found: Choice | None = choose("backbone", "backbones", {"name": backbone.name, **known, **section}, None, problems)
    if found is not None:  # not set by the user: a run that is resumed keeps its own (see `Options.legacy`)
        found.options.model_fields_set.difference_update(known.keys() - section.keys())
    return found


def _views(section: Any, key: Key, method: Choice | None, spec: Any, size: int, problems: Problems) -> tuple[Any, ...]:
    """The views of a section, of the whole run or of a phase."""
    complete = isinstance(section, list | str) or (isinstance(section, dict) and section.get("preset") is not None)
    recipe = None if complete else _of_method("recipe", method, problems, size, spec)
    if recipe is None and not complete:
        return ()  # the method or the backbone already has a problem, and the views depend on it
    from .views_section import resolve_views  # imports torch, which `ssl --help` and `ssl list` do without

    before = len(problems.lines)
    views = resolve_views(section, recipe or {}, size, problems, key)
    if method is not None and len(problems.lines) == before:
        wanted, least, count = method.cls.view_count, method.cls.minimum_views, sum(view.count for view in views)
        if count != (count if wanted is None else wanted) or count < least:
            needs = f"at least {least}" if wanted is None else str(wanted)
            problems.add(key, f"{method.name!r} needs {needs} views of an image, not {count}")
    return views
