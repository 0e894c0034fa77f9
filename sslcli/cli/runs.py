"""`ssl runs`: the runs in a folder, with how far each is."""

from __future__ import annotations

import dataclasses
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslcli.foreign import show
from sslcli.storage import expanded

if TYPE_CHECKING:
    from sslcli.runs.overview import RunSummary

log = logging.getLogger(__name__)


def list_runs(
    folder: Annotated[Path | None, typer.Argument(help="Where to look; runs by default.", metavar="FOLDER")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON list: path, method, data, step, steps, knn, time, state, error."),
    ] = False,
) -> int:
    """List the runs in FOLDER and in its folders, the one that was written last at the end.

    State: running, done, interrupted (and saved), failed (with an error), crashed (killed), or empty.
    `ssl train RUN --resume` goes on with one.
    """
    from sslcli.contracts.errors import UserError
    from sslcli.runs import overview
    from sslcli.runs.layout import RUNS

    where = expanded(folder or RUNS)
    if folder is not None and not where.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = [overview.summarize(run) for run in overview.find_runs(where)]
    found.sort(key=lambda each: each.time or 0.0)
    if as_json:
        show(json.dumps([_plain(each) for each in found], indent=2))
    elif found:
        show("\n".join(_table(found)))
    else:
        log.info(f"no runs in {where.absolute()}; `ssl train` starts one")
    return 0


def _plain(run: RunSummary) -> dict[str, Any]:
    when = None if run.time is None else datetime.fromtimestamp(run.time, UTC).isoformat(timespec="seconds")
    return dataclasses.asdict(run) | {"path": str(run.path), "time": when}


def _table(runs: list[RunSummary]) -> list[str]:
    from sslcli.logs import shown

    rows = [["run", "method", "data", "step", "kNN", "written", "state"]]
    for run in runs:
        step = "–" if run.step is None else f"{run.step:,}"
        rows.append([
            shown(run.path), shown(run.method or "–"), shown(run.data or "–"),
            f"{step} of {run.steps:,}" if run.steps is not None else step,
            "–" if run.knn is None else f"{run.knn:.1%}",
            "–" if run.time is None else datetime.fromtimestamp(run.time).strftime("%Y-%m-%d %H:%M"),
            shown(run.state),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = (3, 4)
    return [
        "  ".join(
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
