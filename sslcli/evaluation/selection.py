"""From `--method` and the options on the command line to evaluators that are ready to run."""

from __future__ import annotations

import logging

from sslcli.config.document import Document
from sslcli.config.options import validate
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.evaluation import Evaluator
from sslcli.plugins import PluginError, find, load, load_found, suggest

from .targets import ShownOptions

log = logging.getLogger(__name__)

ALL = "all"
#: What the command line sets that is not an evaluator's option.
SECTIONS = ("data", "backbone", *ShownOptions.model_fields)


def choose_evaluators(method: str, document: Document) -> dict[str, Evaluator]:
    """Builds the evaluator called `method`, or with `all` every installed one that declares `in_all`.

    With `all` an option goes to each evaluator that has it; one that cannot be loaded is left out with a warning.

    Raises:
        UserError: no such evaluator, or invalid options.
    """
    values = {key: value for key, value in document.data.items() if key not in SECTIONS}
    if method != ALL:
        cls: type[Evaluator] = load("evaluators", method)
        return {method: cls(validate(cls.Options, values, repr(method), document))}
    classes: dict[str, type[Evaluator]] = {}
    for plugin in find("evaluators"):
        try:
            loaded: type[Evaluator] = load_found(plugin)
        except PluginError as error:
            log.warning(f"skipped: {error}")
            continue
        name = plugin.name if plugin.name not in classes else f"{plugin.package}:{plugin.name}"
        if loaded.in_all:
            classes[name] = loaded
        else:
            log.info(f"skipped because it is slow: {name} (run it with --method {name})")
    known = sorted({name for cls in classes.values() for name in cls.Options.model_fields})
    for key in values:
        if key not in known:
            hint = suggest(key, known)
            raise ConfigError([f"command line: {key}: no evaluator of --method all has this option{hint}"])
    evaluators = {}
    for name, cls in classes.items():
        own = {key: value for key, value in values.items() if key in cls.Options.model_fields}
        evaluators[name] = cls(validate(cls.Options, own, repr(name), document))
    if not evaluators:
        raise UserError("no evaluator to run; `ssl list evaluators` shows what is installed")
    return evaluators


def only_possible(evaluators: dict[str, Evaluator], labeled: bool) -> dict[str, Evaluator]:
    """Leaves out, with a message, the evaluators that need labels unless there are two labeled parts."""
    possible = {name: each for name, each in evaluators.items() if labeled or not each.needs_labels}
    for name in [name for name in evaluators if name not in possible]:
        log.info(f"skipped because there are no labeled images to train and test on: {name}")
    if not possible:
        raise UserError("there are no labeled images to train and test on; choose data that has some")
    return possible
