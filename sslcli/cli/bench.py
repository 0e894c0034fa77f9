"""`ssl bench`: how fast a config trains, and what its steps wait for."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def bench(
    config: Annotated[Path, typer.Argument(help="YAML config.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the config, as optimizer.lr=0.3", metavar="[KEY=VALUE]...")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each kind in a round.", min=1, metavar="N")] = 10,
    rounds: Annotated[int, typer.Option(help="How often the kinds take turns.", min=1, metavar="N")] = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.", metavar="FILE")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="Python file whose plugin classes to register.", metavar="FILE")
    ] = None,
) -> int:
    """Time the steps of a training: end to end, on ready views, and phase by phase; and its peak memory.

    Trains without callbacks, in one process, and keeps nothing of it. The ratio of the first two says how near the run
    comes to the speed of the model alone.

    Example: ssl bench examples/configs/quickstart.yaml training.batch_size=256 --output speed.json
    """
    from sslcli.config.resolve import load_config
    from sslcli.plugins import register_file

    for path in plugin or []:
        register_file(path)
    resolved = load_config(config, overrides or [])

    from rich.console import Console  # from here on torch is needed

    from sslcli.storage import check_output, write_text
    from sslcli.training.bench import bench as run_bench
    from sslcli.training.bench_report import as_json, headline, tables

    output = output.expanduser() if output is not None else None
    if output is not None:
        check_output(output)
    session, measured = run_bench(resolved, steps=steps, rounds=rounds)
    console = Console(highlight=False)
    console.print(headline(session), markup=False, soft_wrap=True)
    console.print(tables(session, measured))
    if measured.bad_step is not None:
        log.warning(f"the loss was not finite in step {measured.bad_step}: a run would have ended there")
    if output is not None:
        write_text(output, json.dumps(as_json(session, measured, steps, ["ssl", *sys.argv[1:]]), indent=2) + "\n")
        log.info(f"wrote {output}")
    return 0
