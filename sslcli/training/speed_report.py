"""The output of `ssl bench`: tables for a terminal, a JSON object for files."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from sslcli.runs.environment import describe_environment

from .setup import Session
from .speed import Measured
from .train import plan


def report(session: Session, measured: Measured, steps: int, command: list[str]) -> dict[str, Any]:
    """Returns all results: speeds, each round's times, the resolved config, machine, versions and command."""
    batch = session.config.training.batch_size
    # Of the median round, so that the phases add up to the time of an actual step.
    typical = sorted(measured.phases, key=lambda phases: sum(phases.values()))[(len(measured.phases) - 1) // 2]
    total = sum(typical.values())
    phases = {}
    for name, seconds in typical.items():
        times = [1000 * each[name] for each in measured.phases]
        phases[name] = {
            "ms": _rounded(1000 * seconds), "share": _rounded(seconds / total),
            "ms_min": _rounded(min(times)), "ms_max": _rounded(max(times)),
        }  # fmt: skip
    # Of the two speeds in the same round.
    ratios = [ready / whole for whole, ready in zip(*measured.seconds.values(), strict=True)]
    return {
        **describe_environment(command),
        "config": session.config.plain(),
        "plan": plan(session),
        "steps": steps,
        "rounds": len(measured.phases),
        "images_per_second": {
            name: _spread([batch / each for each in times]) for name, times in measured.seconds.items()
        },
        "ratio": _spread(ratios),
        "phases": phases,
        "phases_clock": "CUDA events" if session.device.type == "cuda" else "host",
        "memory": measured.memory,
        "first_step_with_bad_loss": measured.bad_step,
        "seconds_per_step": {**measured.seconds, "phases": measured.phases},
    }


def tables(report: dict[str, Any]) -> Group:
    """Returns phases, speed and memory of a report as tables."""
    phases = _table("phase", "ms per step", "share", "min", "max")
    rows = {name: tuple(phase.values()) for name, phase in report["phases"].items()}
    rounds = [1000 * sum(each.values()) for each in report["seconds_per_step"]["phases"]]
    rows["step"] = (sum(milliseconds for milliseconds, *_ in rows.values()), 1.0, min(rounds), max(rounds))
    for name, (milliseconds, share, *extremes) in rows.items():
        if name == "step":
            phases.add_section()
        shown = "optimizer and method update" if name == "update" else name
        phases.add_row(shown, f"{milliseconds:,.2f}", f"{share:.1%}", *(f"{value:,.2f}" for value in extremes))
    speed = _table("images/s", *report["ratio"])
    for name, key in (("end to end", "end_to_end"), ("on precomputed views", "ready")):
        speed.add_row(name, *(f"{value:,.1f}" for value in report["images_per_second"][key].values()))
    speed.add_row("ratio", *(f"{value:.3f}" for value in report["ratio"].values()))
    memory, found = _table("memory", "MiB", "share"), report["memory"]
    for name, count in {f"peak, {found['kind']}": found["peak_bytes"], **found["held_bytes"]}.items():
        memory.add_row(name, f"{count / 2**20:,.1f}", f"{count / found['peak_bytes']:.1%}")
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


def _spread(values: list[float]) -> dict[str, float]:
    """The median over rounds, and the extremes."""
    return {
        "median": _rounded(statistics.median(values)), "min": _rounded(min(values)), "max": _rounded(max(values)),
    }  # fmt: skip


def _rounded(value: float) -> float:
    """Five digits: more than the clocks are accurate to."""
    return float(f"{value:.5g}")
