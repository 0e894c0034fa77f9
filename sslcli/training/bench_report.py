"""What `ssl bench` shows: one table for a terminal, one JSON object for files."""

from __future__ import annotations

from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from sslcli.runs.environment import describe_environment

from .bench import Measured, Spread
from .setup import Session
from .train import plan

#: What a reader sees for the phases' names.
_SHOWN = {"update": "optimizer and method update"}


def as_json(session: Session, measured: Measured, steps: int, command: list[str]) -> dict[str, Any]:
    """Returns everything: figures, each round's times, the resolved config, machine, versions and command."""
    batch, typical = session.config.training.batch_size, measured.typical
    total = sum(typical.values())
    return {
        **describe_environment(command),
        "config": session.config.plain(),
        "plan": plan(session),
        "steps": steps,
        "rounds": len(measured.ready),
        "images_per_second": {
            "end_to_end": _spread(_rates(batch, measured.end_to_end)),
            "ready": _spread(_rates(batch, measured.ready)),
        },
        "ratio": _spread(measured.ratio),
        "phases": {
            name: {
                "ms": _figure(1000 * seconds), "share": _figure(seconds / total),
                "ms_min": _figure(1000 * spread.low), "ms_max": _figure(1000 * spread.high),
            }
            for name, seconds in typical.items()
            for spread in [_phase_spread(measured, name)]
        },
        "phases_clock": "CUDA events" if session.device.type == "cuda" else "host",
        "memory": {"kind": measured.memory_kind, "peak_bytes": measured.peak_bytes, "held_bytes": measured.held_bytes},
        "first_step_with_bad_loss": measured.bad_step,
        "seconds_per_step": {
            "end_to_end": measured.end_to_end, "ready": measured.ready, "phases": measured.phases,
        },
    }  # fmt: skip


def tables(session: Session, measured: Measured) -> Group:
    """Returns phases, speed and memory for reading."""
    batch = session.config.training.batch_size
    speed = _table("images/s", "median", "min", "max")
    for name, seconds in {"end to end": measured.end_to_end, "the same on ready views": measured.ready}.items():
        speed.add_row(name, *(f"{value:,.1f}" for value in _rates(batch, seconds)))
    speed.add_row("ratio", *(f"{value:.3f}" for value in measured.ratio))
    memory = _table("memory", "MiB", "share")
    memory.add_row(f"peak, {measured.memory_kind}", f"{measured.peak_bytes / 2**20:,.1f}", "100.0 %")
    for name, count in measured.held_bytes.items():
        memory.add_row(name, f"{count / 2**20:,.1f}", f"{count / measured.peak_bytes:.1%}".replace("%", " %"))
    return Group(_phase_table(measured), speed, memory)


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


def _phase_table(measured: Measured) -> Table:
    table = _table("phase", "ms a step", "share", "min", "max")
    typical = measured.typical
    total = sum(typical.values())
    for name, seconds in typical.items():
        spread = _phase_spread(measured, name)
        low, high = (f"{1000 * value:,.2f}" for value in (spread.low, spread.high))
        table.add_row(_SHOWN.get(name, name), f"{1000 * seconds:,.2f}", f"{100 * seconds / total:.1f} %", low, high)
    table.add_section()
    spread = Spread.of([sum(phases.values()) for phases in measured.phases])
    table.add_row("step", f"{1000 * total:,.2f}", "100.0 %", f"{1000 * spread.low:,.2f}", f"{1000 * spread.high:,.2f}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def _phase_spread(measured: Measured, name: str) -> Spread:
    return Spread.of([phases[name] for phases in measured.phases])


def _rates(batch: int, seconds: list[float]) -> Spread:
    return Spread.of([batch / value for value in seconds])


def _spread(spread: Spread) -> dict[str, float]:
    return {"median": _figure(spread.median), "min": _figure(spread.low), "max": _figure(spread.high)}


def _figure(value: float) -> float:
    """Five digits: more than any clock here is good for."""
    return float(f"{value:.5g}")
