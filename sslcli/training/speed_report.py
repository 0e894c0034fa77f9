"""The output of `ssl bench`: tables for a terminal, a JSON object for files."""

from __future__ import annotations

from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from sslcli.runs.environment import describe_environment

from .setup import Session
from .speed import Measured, Spread
from .train import plan

#: Phases that the table names differently.
_SHOWN = {"update": "optimizer and method update"}


def as_json(session: Session, measured: Measured, steps: int, command: list[str]) -> dict[str, Any]:
    """Returns all results: speeds, each round's times, the resolved config, machine, versions and command."""
    batch, typical = session.config.training.batch_size, measured.typical
    total = sum(typical.values())
    phases = {}
    for name, seconds in typical.items():
        spread = Spread.of([1000 * each[name] for each in measured.phases])
        phases[name] = {
            "ms": _rounded(1000 * seconds), "share": _rounded(seconds / total),
            "ms_min": _rounded(spread.low), "ms_max": _rounded(spread.high),
        }  # fmt: skip
    return {
        **describe_environment(command),
        "config": session.config.plain(),
        "plan": plan(session),
        "steps": steps,
        "rounds": len(measured.ready),
        "images_per_second": {
            "end_to_end": _plain(_rates(batch, measured.end_to_end)), "ready": _plain(_rates(batch, measured.ready)),
        },
        "ratio": _plain(measured.ratio),
        "phases": phases,
        "phases_clock": "CUDA events" if session.device.type == "cuda" else "host",
        "memory": {"kind": measured.memory_kind, "peak_bytes": measured.peak_bytes, "held_bytes": measured.held_bytes},
        "first_step_with_bad_loss": measured.bad_step,
        "seconds_per_step": {"end_to_end": measured.end_to_end, "ready": measured.ready, "phases": measured.phases},
    }  # fmt: skip


def tables(session: Session, measured: Measured) -> Group:
    """Returns phases, speed and memory as tables."""
    batch, typical = session.config.training.batch_size, measured.typical
    total = sum(typical.values())
    phases = _table("phase", "ms per step", "share", "min", "max")
    for name, seconds in typical.items():
        spread = Spread.of([1000 * each[name] for each in measured.phases])
        _add_phase(phases, _SHOWN.get(name, name), 1000 * seconds, seconds / total, spread)
    phases.add_section()
    _add_phase(phases, "step", 1000 * total, 1, Spread.of([1000 * sum(each.values()) for each in measured.phases]))
    speed = _table("images/s", "median", "min", "max")
    for name, times in {"end to end": measured.end_to_end, "on precomputed views": measured.ready}.items():
        speed.add_row(name, *(f"{value:,.1f}" for value in _rates(batch, times)))
    speed.add_row("ratio", *(f"{value:.3f}" for value in measured.ratio))
    memory = _table("memory", "MiB", "share")
    for name, count in {f"peak, {measured.memory_kind}": measured.peak_bytes, **measured.held_bytes}.items():
        memory.add_row(name, f"{count / 2**20:,.1f}", f"{100 * count / measured.peak_bytes:.1f} %")
    return Group(phases, speed, memory)


def headline(session: Session) -> str:
    """Returns what was measured, in a line."""
    config, sizes = session.config, session.views.sizes
    training = config.training
    device = torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else session.device.type
    pixels = ", ".join(f"{sizes.count(size)} of {size} px" for size in dict.fromkeys(sizes))
    micro = f" in {training.accumulate} micro-batches" if training.accumulate > 1 else ""
    return (
        f"{config.method.name}, {config.backbone.name}, {config.data.name}; batch of {training.batch_size}{micro}, "
        f"views: {pixels}; {device}, {training.precision}, compiled: {training.compile}, "
        f"{torch.get_num_threads()} thread(s)"
    )


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _add_phase(table: Table, name: str, milliseconds: float, share: float, spread: Spread) -> None:
    table.add_row(
        name, f"{milliseconds:,.2f}", f"{100 * share:.1f} %", f"{spread.low:,.2f}", f"{spread.high:,.2f}"
    )  # fmt: skip


def _rates(batch: int, seconds: list[float]) -> Spread:
    return Spread.of([batch / value for value in seconds])


def _plain(spread: Spread) -> dict[str, float]:
    return {"median": _rounded(spread.median), "min": _rounded(spread.low), "max": _rounded(spread.high)}


def _rounded(value: float) -> float:
    """Five digits: more than the clocks are accurate to."""
    return float(f"{value:.5g}")
