"""`ssl bench`: how fast a config trains, and what its steps spend their time on."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from sslcli.foreign import results
from sslcli.storage import expanded

from .arguments import Config, Overrides, PluginFiles, config_and_overrides

log = logging.getLogger(__name__)


def bench(
    config: Config = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps of each kind per round.", min=1, metavar="N")] = 10,
    rounds: Annotated[int, typer.Option(help="Number of rounds.", min=1, metavar="N")] = 5,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Begin no round that would end later than this after the start, but the first.", min=0, metavar="M"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results to a JSON file.", metavar="FILE")] = None,
    plugin: PluginFiles = None,
) -> int:
    """Measure training speed: whole steps, steps on prepared views, each phase of a step, and peak memory.

    Trains in one process, without callbacks, and saves nothing. Ctrl-C, or a signal to end, shows and writes the
    results of the rounds that are complete.

    Example: ssl bench quickstart training.batch_size=256 --output speed.json
    """
    from sslcli.config.resolve import load_config
    from sslcli.plugins import register_file

    for path in plugin or []:
        register_file(path)
    resolved = load_config(*config_and_overrides(bench, config, overrides))

    from rich.console import Console  # torch is imported from here on

    from sslcli.storage import check_output, write_text
    from sslcli.training.speed import headline, measure, report, tables

    output = expanded(output) if output is not None else None
    if output is not None:
        check_output(output)
    session, measured = measure(resolved, steps=steps, rounds=rounds, minutes=minutes)
    code = 0 if measured.signal is None else 128 + measured.signal
    if not measured.phases:
        log.warning("no round is complete, so there are no results; rounds are shorter with fewer --steps")
        return code
    found = report(session, measured, steps, ["ssl", *sys.argv[1:]])
    console = Console(file=results(), highlight=False)
    console.print(headline(session), markup=False, soft_wrap=True)
    console.print(tables(found))
    if measured.bad_step is not None:
        log.warning(f"the loss was not finite in step {measured.bad_step}: `ssl train` would have stopped there")
    if output is not None:
        write_text(output, json.dumps(found, indent=2) + "\n")
        log.info(f"wrote {output}")
    return code
