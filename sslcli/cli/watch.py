"""`ssl watch`: a run as its log has it, with curves in the terminal."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sslcli.contracts.errors import UserError
from sslcli.foreign import results, show
from sslcli.storage import expanded

from . import completion

log = logging.getLogger(__name__)

#: Values that come first, in this order, if a log has them; then all others in the order of the log.
FIRST = ("loss", "knn_top1", "probe_top1", "lr")
#: Values that say nothing over time, or that a line of text says better.
LEFT_OUT = {"step", "epoch", "images_per_second", "data_wait", "knn_top1_pixels"}
#: Columns of a curve with its scale at least, and rows of dots.
_NARROWEST, _ROWS, _SCALE = 36, 5, 9
#: Rows of the terminal that are not curves.
_HEAD = 4


def watch(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run directory; by default the newest in runs/.", metavar="[RUN]", autocompletion=completion.exported
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds from one look at the log to the next.", min=0.1, metavar="S")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is, and end.")] = False,
) -> int:
    """Show how a run is doing, or how it went: its state, last values, and curves.

    Looks at the log again and again while the run goes on. Ctrl-C ends watching, not the run.

    Example: ssl watch runs/first
    """
    from sslcli.runs import overview
    from sslcli.runs.layout import RUNS

    if run is None:
        found = overview.newest_first(expanded(RUNS))
        if not found:
            raise UserError("no runs in runs/; name a run, or start one with `ssl train`")
        directory = found[0]
    else:
        directory = expanded(run)
        if overview.find_runs(directory, depth=0) != [directory]:
            raise UserError(f"{run}: is not a run directory; `ssl runs` lists those in a folder")
    if once or not results().isatty():
        show("\n".join(frame(directory, *shutil.get_terminal_size())))
        return 0
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=results(), highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                running = overview.is_running(directory)  # before it is read: what it wrote last is seen too
                live.update(Text("\n".join(frame(directory, *console.size))), refresh=True)
                if not running:
                    break
                time.sleep(every)
        except KeyboardInterrupt:
            log.info("the run goes on")
    return 0


def frame(directory: Path, width: int, height: int) -> list[str]:
    """Returns the lines that show a run in a terminal of that size."""
    from sslcli.logs import duration, shown
    from sslcli.runs.layout import METRICS
    from sslcli.runs.metrics import read_metrics
    from sslcli.runs.overview import summarize

    run, lines = summarize(directory), read_metrics(directory / METRICS)
    step = "–" if run.step is None else f"{run.step:,}"
    share = f" of {run.steps:,} ({(run.step or 0) / run.steps:.0%})" if run.steps else ""
    written = "" if run.time is None else f", written {duration(max(time.time() - run.time, 0))} ago"
    texts = [
        f"{directory}: {run.method or '?'} on {run.data or '?'}",
        f"step {step}{share}, {run.state}{f' ({run.error})' if run.error else ''}{written}",
        _last_values(lines),
    ]
    head = [_cut(shown(text), width) for text in texts if text]
    names = curves_of(lines)
    per_row = max(1, min(width // _NARROWEST, len(names) or 1))
    plots = [_plot(lines, name, (width - 2 * (per_row - 1)) // per_row) for name in names]
    room = max(1, (height - _HEAD) // (_ROWS + 3)) * per_row
    rows = [plots[start : start + per_row] for start in range(0, min(len(plots), room), per_row)]
    for row in rows:
        head += ["", *("  ".join(parts).rstrip() for parts in zip(*row, strict=True))]
    return [_cut(line, width) for line in head] if names else [*head, "nothing is logged yet"]


def curves_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the values of a log that are drawn, in their order."""
    names = dict.fromkeys(name for line in lines for name, value in line.items() if type(value) in (int, float))
    first = [name for name in FIRST if name in names]
    return [*first, *(name for name in names if name not in first and name not in LEFT_OUT)]


def _last_values(lines: Sequence[Mapping[str, Any]]) -> str:
    """The speed, and the best kNN accuracy beside that of raw pixels."""
    last: dict[str, Any] = {name: value for line in lines for name, value in line.items()}
    knn = [line["knn_top1"] for line in lines if "knn_top1" in line and line["step"]]
    parts = [f"epoch {last['epoch']:.1f}"] if type(last.get("epoch")) in (int, float) else []
    if type(last.get("images_per_second")) in (int, float):
        parts.append(f"{last['images_per_second']:,.0f} images/s")
    if type(last.get("data_wait")) in (int, float):
        parts.append(f"waiting {last['data_wait']:.0%}")
    if knn:
        pixels = last.get("knn_top1_pixels")
        beside = f", pixels {pixels:.1%}" if type(pixels) is float else ""
        parts.append(f"kNN {knn[-1]:.1%} (best {max(knn):.1%}{beside})")
    return ", ".join(parts)


def _plot(lines: Sequence[Mapping[str, Any]], name: str, width: int) -> list[str]:
    """A title with the last value, the curve with its scale, and its steps."""
    from sslcli.logs import shown
    from sslcli.runs.curves import curve

    points = [(line["step"], float(line[name])) for line in lines if type(line.get(name)) in (int, float)]
    rows, low, high = curve(points, width - _SCALE, _ROWS)
    scale = [_number(high), *[""] * (_ROWS - 2), _number(low)]
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    return [
        _cut(f"{' ' * _SCALE}{shown(name)} {_number(points[-1][1])}", width).ljust(width),
        *(f"{mark.rjust(_SCALE - 1)} {row}" for mark, row in zip(scale, rows, strict=True)),
        f"{' ' * _SCALE}{first}{last.rjust(width - _SCALE - len(first))}"[:width].ljust(width),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
