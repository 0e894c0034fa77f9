"""Plots the results of `scaling.py`: one small SVG for each axis, in log-log scale."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from page import PAGE

FOLDER = PAGE.parent / PAGE.stem
COLORS = ("#1f6fb4", "#c2571a")
INK, PALE = "#333333", "#dddddd"
SIZE = (4.2, 3.0)  # inches


def draw(report: dict[str, Any], folder: Path = FOLDER, suffix: str = "svg") -> list[Path]:
    """Writes `scaling-AXIS.SUFFIX` for every axis of a report; returns the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    # A fixed salt and no date: the same figures make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9}):
        for axis, entry in report["axes"].items():
            files.append(folder / f"scaling-{axis}.{suffix}")
            figure = _figure(entry)
            figure.savefig(files[-1], metadata={"Date": None} if suffix == "svg" else None)
    return files


def _figure(entry: dict[str, Any]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, series), color in zip(entry["series"].items(), COLORS, strict=False):
        exponent = f"{series['exponent']:.2f}".replace("-", "−")
        label = name if len(entry["series"]) > 1 else "measured"
        _curve(axes, series, color, f"{label}, exponent {exponent}")
    points = next(iter(entry["series"].values()))["points"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([point["value"] for point in points])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(entry["label"], color=INK)
    axes.set_ylabel(f"seconds {'an epoch' if entry['seconds_of'] == 'epoch' else 'a step'}", color=INK)
    axes.grid(True, which="both", color=PALE, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)
    return figure


def _curve(axes: Any, series: dict[str, Any], color: str, label: str) -> None:
    """The medians with the extremes, and the fitted power law."""
    points = series["points"]
    values, medians = ([point[key] for point in points] for key in ("value", "median"))
    below, above = ([abs(point["median"] - point[key]) for point in points] for key in ("min", "max"))
    axes.errorbar(values, medians, [below, above], fmt="o", color=color, markersize=4, elinewidth=1, label=label)
    shift = statistics.mean(
        math.log(m) - series["exponent"] * math.log(v) for v, m in zip(values, medians, strict=True)
    )
    line = [math.exp(shift) * value ** series["exponent"] for value in values]
    axes.plot(values, line, color=color, linewidth=1, alpha=0.6)
