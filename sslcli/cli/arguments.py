"""Arguments that several commands have."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer
from typer.models import OptionInfo

from sslcli.contracts.errors import ConfigError, UserError
from sslcli.shell import shell_word

from . import completion

Config = Annotated[
    str | None,
    typer.Argument(
        help="YAML config, or the name of an example (`ssl list configs`).",
        metavar="[CONFIG]",
        autocompletion=completion.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options of the config, such as optimizer.lr=0.3; `ssl list` shows what there is.",
        metavar="KEY=VALUE",
        autocompletion=completion.overrides,
    ),
]
PluginFiles = Annotated[
    list[Path] | None, typer.Option(help="Python file with plugin classes to register.", metavar="FILE")
]
Devices = Annotated[
    int | None, typer.Option(help="Number of processes on this machine, one per GPU.", min=1, metavar="N")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)]


def is_override(word: str) -> bool:
    """Returns whether a word looks like `key.path=…`, and is not the path of a file."""
    return re.match(r"[\w.:-]*=", word) is not None and not os.path.exists(os.path.expanduser(word))


#: For commands with overrides: options that they don't have stay among the words, so that we can say what is meant.
KEEP_UNKNOWN = {"ignore_unknown_options": True}


def verbosity() -> list[str]:
    """Returns the options that make another process show as much as this one does."""
    level = logging.getLogger("sslcli").level
    return ["--quiet"] * (level == logging.WARNING) + ["--verbose"] * (level == logging.DEBUG)


def config_and_overrides(
    command: Callable[..., int], config: str | None, overrides: Sequence[str] | None
) -> tuple[Path | None, list[str]]:
    """Tells a config from overrides, among which it may be anywhere; without one, the overrides are all there is.

    An option that the command does not have, such as `--lr 0.1`, becomes `lr=0.1`: reading the config says which option
    that is.

    Args:
        command: whose arguments they are.
        config: the first word.
        overrides: the others.

    Raises:
        UserError: there is neither, or more than one config, or `--name` is another option, or a section of the config.
    """
    words = without_options(command, [*([config] if config is not None else []), *(overrides or [])])
    configs = [word for word in words if not is_override(word)]
    if not words:
        raise UserError(
            "nothing to train: give a config (`ssl list configs`), or a method and data: method=simclr data=FOLDER"
        )
    if len(configs) > 1:
        raise UserError(f"command line: {configs[1]!r}: should look like key.path=value (optimizer.lr=0.3)")
    return (Path(configs[0]) if configs else None), [word for word in words if is_override(word)]


def without_options(command: Callable[..., int], words: list[str]) -> list[str]:
    """Returns the words with overrides in place of options; UserError as `config_and_overrides`."""
    if not any(word.startswith("-") for word in words):
        return words
    from sslcli.config.resolve import SECTIONS
    from sslcli.config.schema import CheckpointOptions, TrainingOptions

    arguments = inspect.signature(command, eval_str=True).parameters.items()
    own = [name for name, each in arguments if any(isinstance(x, OptionInfo) for x in get_args(each.annotation))]
    own += ["quiet", "verbose"]
    options = {*TrainingOptions.model_fields, *CheckpointOptions.model_fields}
    kept: list[str] = []
    problems = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            kept.append(word)
            continue
        option, equals, value = word.partition("=")
        name = option.lstrip("-").replace("-", "_")
        if not equals and left and not left[0].startswith("--") and not is_override(left[0]):
            value = left.pop(0)
        if name == "config":
            problems.append(f"{option}: no such option; write {shell_word(value) if value else 'CONFIG'} without it")
            continue
        near = [] if name in options else difflib.get_close_matches(name, own, n=1, cutoff=0.75)
        if name.partition(".")[0] in SECTIONS:
            problems.append(f"{option}: no such option; write {name}={shell_word(value) if value else 'VALUE'}")
        elif near or not option.startswith("--"):
            advice = f"did you mean --{near[0].replace('_', '-')}?" if near else "see --help"
            problems.append(f"{option}: no such option; {advice}")
        else:
            kept.append(f"{name}={value or 'true'}")
    if problems:
        raise ConfigError(problems)
    return kept
