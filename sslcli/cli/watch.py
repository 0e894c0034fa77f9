"""`ssl watch`: a run as its log has it, with curves in the terminal."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size

from sslcli.contracts.errors import UserError
from sslcli.foreign import results, show
from sslcli.runs.metrics import finite
from sslcli.storage import expanded

from . import completion

log = logging.getLogger(__name__)

#: Values that come first, in this order, if a log has them; then all others in the order of the log.
FIRST = ("loss", "knn_top1", "probe_top1", "lr")
#: Values that say nothing over time, or that a line of text says better.
LEFT_OUT = {"step", "epoch", "images_per_second", "data_wait", "knn_top1_pixels"}
#: Columns of a curve with its scale where there is more than one in a row, and where there are any; rows of dots.
_NARROW, _NARROWEST, _ROWS, _SCALE = 36, 16, 5, 9
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
        float, typer.Option(help="Seconds from one look at the log to the next.", min=0.1, max=86400, metavar="S")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is, and end.")] = False,
) -> int:
    """Show how a run is doing, or how it went: its state, last values, and curves.

    Looks at the log again and again while the run goes on. Ctrl-C ends watching, not the run.

    Example: ssl watch runs/first
    """
    from sslcli.runs import overview
    from sslcli.runs.layout import METRICS, RUNS
    from sslcli.runs.metrics import Log

    if run is None:
        found = (each for each in overview.newest_first(expanded(RUNS)) if overview.summarize(each).state != "empty")
        newest = next(found, None)
        if newest is None:
            raise UserError("no runs in runs/; name a run, or start one with `ssl train`")
        directory = newest
    else:
        directory = expanded(run)
        if overview.find_runs(directory, depth=0) != [directory]:
            raise UserError(f"{run}: is not a run directory; `ssl runs` lists those in a folder")
    journal = Log(directory / METRICS)
    if once or not results().isatty():
        width, height = shutil.get_terminal_size()
        show("\n".join(frame(directory, journal.read(), width, height if results().isatty() else sys.maxsize)))
        return 0
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=results(), highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                running = overview.is_running(directory)  # before it is read: what it wrote last is seen too
                live.update(Text("\n".join(frame(directory, journal.read(), *console.size))), refresh=True)
                if not running:
                    break
                time.sleep(every)
        except KeyboardInterrupt:
            log.info("the run goes on")
    return 0


def frame(directory: Path, lines: Sequence[Mapping[str, Any]], width: int, height: int) -> list[str]:
    """Returns the lines that show a run in a terminal of that size.

    Args:
        directory: of the run.
        lines: of its log.
        width: columns.
        height: rows.
    """
    from sslcli.logs import duration, shown
    from sslcli.runs.overview import summarize

    run = summarize(directory)
    step = "–" if run.step is None else f"{run.step:,}"
    share = f" of {run.steps:,} ({(run.step or 0) / run.steps:.0%})" if run.steps else ""
    written = "" if run.time is None else f", written {duration(max(time.time() - run.time, 0))} ago"
    texts = [
        f"{directory}: {run.method or '?'} on {run.data or '?'}",
        f"step {step}{share}, {run.state}{f' ({run.error})' if run.error else ''}{written}",
        _last_values(lines),
    ]
    names = curves_of(lines)
    per_row = max(1, min(width // _NARROW, len(names)))
    room = max(0, (height - _HEAD) // (_ROWS + 3)) * per_row if width >= _NARROWEST else 0
    plots = [_plot(lines, name, (width - 2 * (per_row - 1)) // per_row) for name in names[:room]]
    found = [shown(text) for text in texts if text]
    for start in range(0, len(plots), per_row):
        found += ["", *("  ".join(parts).rstrip() for parts in zip(*plots[start : start + per_row], strict=True))]
    if len(names) > room:
        found.append(f"{len(names) - room} more where there is room: {', '.join(map(shown, names[room:]))}")
    found += ["nothing is logged yet"] * (not names)
    return [_cut(line, width) for line in found]


def curves_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the values of a log that are drawn, in their order."""
    names = dict.fromkeys(name for line in lines for name in line if finite(line[name]) is not None)
    first = [name for name in FIRST if name in names]
    return [*first, *(name for name in names if name not in first and name not in LEFT_OUT)]


def _last_values(lines: Sequence[Mapping[str, Any]]) -> str:
    """The speed, and the best kNN accuracy beside that of raw pixels."""
    last = {name: value for line in lines for name in line if (value := finite(line[name])) is not None}
    knn = [value for line in lines if line["step"] and (value := finite(line.get("knn_top1"))) is not None]
    parts = [f"epoch {last['epoch']:.1f}"] if "epoch" in last else []
    parts += [f"{last['images_per_second']:,.0f} images/s"] if "images_per_second" in last else []
    parts += [f"waiting {last['data_wait']:.0%}"] if "data_wait" in last else []
    if knn:
        beside = f", pixels {last['knn_top1_pixels']:.1%}" if "knn_top1_pixels" in last else ""
        parts.append(f"kNN {knn[-1]:.1%} (best {max(knn):.1%}{beside})")
    return ", ".join(parts)


def _plot(lines: Sequence[Mapping[str, Any]], name: str, width: int) -> list[str]:
    """A title with the last value, the curve with its scale, and its steps."""
    from sslcli.logs import shown
    from sslcli.runs.curves import curve

    steps = [(finite(line["step"]), finite(line.get(name))) for line in lines]
    points = [(step, value) for step, value in steps if step is not None and value is not None]
    rows, low, high = curve(points, width - _SCALE, _ROWS)
    scale = [_number(high), *[""] * (_ROWS - 2), _number(low)]
    first, last = f"{points[0][0]:,.0f}", f"{points[-1][0]:,.0f}"
    return [
        set_cell_size(f"{' ' * _SCALE}{shown(name)} {_number(points[-1][1])}", width),
        *(f"{mark.rjust(_SCALE - 1)} {row}" for mark, row in zip(scale, rows, strict=True)),
        set_cell_size(f"{' ' * _SCALE}{first}{last.rjust(width - _SCALE - len(first))}", width),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(width - 1, 0))}…"
