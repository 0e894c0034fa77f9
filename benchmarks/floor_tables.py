"""The tables of `floor.py`: the cost of an image, the machines, the ceilings and the measured speeds."""

from __future__ import annotations

from typing import Any

from ceilings import DTYPES, Machine
from operations import PHASES
from page import table

SPEEDS = (
    "network", "machine", "arithmetic", "by operations", "by bytes", "eager", "measured, prepared views",
    "measured, end to end", "fraction of the bound",
)  # fmt: skip


def tables(report: dict[str, Any]) -> str:
    """Returns the tables of a report of `floor.py` as Markdown.

    Of the measurements of this CPU, only the last one, with all threads, has ceilings in the table.
    """
    machines = {name: Machine(**values) for name, values in report["machines"].items()}
    work = [
        [row["case"], row["precision"], phase, *_work_cells(row["an_image"][phase])]
        for row in report["rows"]
        if row["precision"] == "bf16"
        for phase in PHASES
    ]
    limits = [
        [m.name, *(f"{m.operations[name] / 1e9:,.0f}" for name in DTYPES), f"{m.bandwidth / 1e9:,.1f}", m.source]
        for m in machines.values()
    ]
    speeds = [
        [row["case"], name, row["precision"], *_speed_cells(ceiling, row["measured"][name])]
        for row in report["rows"]
        for name, ceiling in list(row["ceilings"].items())[-2:]
    ]
    command = " ".join(report["command"])
    machine = f"{report['processor']}, load average {report['load_average']}, torch {report['torch']}"
    parts = [
        f"One image's share of a step of {report['batch']} images:\n",
        table(["network", "arithmetic", "phase", "million operations", "kB at least", "kB eager"], work),
        "The machines:\n",
        table(["machine", "fp32 GFLOP/s", "bf16 GFLOP/s", "GB/s", "from"], limits),
        "Images per second; the bound is the lower of the first two; the last column is the fraction of it that was "
        "reached on prepared views:\n",
        table(list(SPEEDS), speeds),
        f"Made by `{command}`, {report['time']}, {machine}.\n",
    ]
    return "\n".join(parts)


def _work_cells(values: dict[str, float]) -> list[str]:
    return [_figure(values[name]) for name in ("megaoperations", "least_kilobytes", "eager_kilobytes")]


def _speed_cells(ceiling: dict[str, float], measured: dict[str, Any]) -> list[str]:
    limits = [_figure(ceiling[name]) for name in ("operations", "bytes", "eager")]
    if not measured:
        return [*limits, "—", "—", "—"]
    ready, whole = (measured["images_per_second"][kind] for kind in ("ready", "end_to_end"))
    share = ready / min(ceiling["operations"], ceiling["bytes"])
    return [*limits, _figure(ready), _figure(whole), f"{100 * share:.0f}%"]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
