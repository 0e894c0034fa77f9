"""From `--method` and the options on the command line to evaluators that are ready to run."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_args

from sslcli.config.document import Document
from sslcli.config.merge import merge
from sslcli.config.options import validate
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.evaluation import Evaluator
from sslcli.plugins import PluginError, find, load, load_found, suggest

from .targets import ShownOptions

log = logging.getLogger(__name__)

ALL = "all"
#: What the command line sets that is not an evaluator's option.
SECTIONS = ("data", "backbone", *ShownOptions.model_fields)
PROTOCOL = "protocol"


@dataclass
class Chosen:
    """An evaluator with what the command line sets, before it is known for which backbone.

    Attributes:
        name: as it was chosen.
        cls: its class.
        values: the command line's, for its options.
        document: the command line, for the origin of each.
    """

    name: str
    cls: type[Evaluator]
    values: dict[str, Any]
    document: Document

    def build(self, spec: BackboneSpec | None = None) -> Ready:
        """Returns the evaluator for a backbone, or as its named protocol is by itself.

        Raises:
            UserError: invalid options.
        """
        asked = _asked(self.values, self.cls)
        if asked is None:
            return Ready(self.cls(validate(self.cls.Options, self.values, repr(self.name), self.document)))
        found = asked if spec is None else self.cls.protocol_for(asked, spec)
        published = self.cls.protocols[found]
        settings = deepcopy(dict(published.options))
        shown = {key: settings.pop(key) for key in ShownOptions.model_fields if key in settings}
        merged = Document(settings, {(): f"{PROTOCOL}={found}"})
        own = {key: value for key, value in self.values.items() if key != PROTOCOL}
        merge(merged, Document(own, dict(self.document.where)))
        evaluator = self.cls(validate(self.cls.Options, merged.data, repr(self.name), merged))
        return Ready(evaluator, shown, {"name": found, "source": published.source})


@dataclass
class Ready:
    """An evaluator for one backbone.

    Attributes:
        evaluator: with its options.
        shown: what its protocol sets of `ShownOptions`, under the command line.
        published: name and source of that protocol; None if there is none.
    """

    evaluator: Evaluator
    shown: dict[str, Any] = field(default_factory=dict)
    published: dict[str, str] | None = None


def choose_evaluators(method: str, document: Document) -> dict[str, Chosen]:
    """Finds the evaluator called `method`, or with `all` every installed one that declares `in_all`.

    With `all` an option goes to each evaluator that has it; one that cannot be loaded is left out with a warning.

    Raises:
        UserError: no such evaluator, no such protocol, or invalid options.
    """
    values = {key: value for key, value in document.data.items() if key not in SECTIONS}
    if method != ALL:
        cls: type[Evaluator] = load("evaluators", method)
        _check_protocol(values, method, cls)
        chosen = {method: Chosen(method, cls, values, document)}
    else:
        chosen = _choose_all(values, document)
    for each in chosen.values():
        each.build()  # so that invalid options are reported before anything is read
    return chosen


def _choose_all(values: dict[str, Any], document: Document) -> dict[str, Chosen]:
    classes: dict[str, type[Evaluator]] = {}
    for plugin in find("evaluators"):
        try:
            loaded: type[Evaluator] = load_found(plugin)
        except PluginError as error:
            log.warning(f"skipped: {error}")
            continue
        name = plugin.name if plugin.name not in classes else f"{plugin.package}:{plugin.name}"
        if (asked := _asked(values, loaded)) is not None:
            raise ConfigError([f"command line: protocol: {asked} is for one evaluator; choose it: --method {name}"])
        if loaded.in_all:
            classes[name] = loaded
        else:
            log.info(f"skipped because it is slow: {name} (run it with --method {name})")
    known = sorted({name for cls in classes.values() for name in cls.Options.model_fields})
    for key in values:
        if key not in known:
            hint = suggest(key, known)
            raise ConfigError([f"command line: {key}: no evaluator of --method all has this option{hint}"])
    if not classes:
        raise UserError("no evaluator to run; `ssl list evaluators` shows what is installed")
    own = {name: {k: v for k, v in values.items() if k in cls.Options.model_fields} for name, cls in classes.items()}
    return {name: Chosen(name, cls, own[name], document) for name, cls in classes.items()}


def _asked(values: dict[str, Any], cls: type[Evaluator]) -> str | None:
    """The name of published settings, if that is what `protocol` has."""
    asked = values.get(PROTOCOL)
    return asked if isinstance(asked, str) and asked in cls.protocols else None


def _check_protocol(values: dict[str, Any], method: str, cls: type[Evaluator]) -> None:
    asked, option = values.get(PROTOCOL), cls.Options.model_fields.get(PROTOCOL)
    own = () if option is None else get_args(option.annotation)
    if isinstance(asked, str) and cls.protocols and asked not in (*own, *cls.protocols):
        hint = suggest(asked, [*own, *cls.protocols], otherwise=True)
        raise ConfigError([f"command line: protocol: {method!r} has no protocol {asked!r}{hint}"])


def only_possible(chosen: dict[str, Chosen], labeled: bool) -> dict[str, Chosen]:
    """Leaves out, with a message, the evaluators that need labels unless there are two labeled parts."""
    possible = {name: each for name, each in chosen.items() if labeled or not each.cls.needs_labels}
    for name in [name for name in chosen if name not in possible]:
        log.info(f"skipped because there are no labeled images to train and test on: {name}")
    if not possible:
        raise UserError("there are no labeled images to train and test on; choose data that has some")
    return possible
