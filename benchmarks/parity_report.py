"""The tables of `parity.py`: means, spreads and differences of its runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from page import table
from parity_settings import DIFFERENCES

SCORES = {"knn": "kNN", "linear": "linear"}


def spread(values: Sequence[float]) -> float:
    """The standard deviation of the population that a sample is from; NaN for one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Returns the difference of two means and its standard error √(s₁²/n₁ + s₂²/n₂), NaN if one has a single value."""
    error = math.sqrt(sum(spread(values) ** 2 / len(values) for values in (ours, theirs)))
    return statistics.mean(ours) - statistics.mean(theirs), error


def tables(runs: Sequence[Mapping[str, Any]], digests: Mapping[tuple[str, str], str]) -> str:
    """Returns the tables in Markdown.

    Args:
        runs: of the ledger.
        digests: of the present settings by method and kind; other runs are left out.
    """
    asked = [run for run in runs if digests.get((run["method"], run["kind"])) == run["settings"]]
    # The newest run of each seed: an older one is of other versions, or was made twice.
    newest = {tuple(run[name] for name in ("tool", "method", "kind", "seed")): run for run in asked}
    present = [run for run in newest.values() if "failed" not in run]
    failed = [f"{each[0]} `{each[1]}` seed {each[3]}" for each, run in newest.items() if "failed" in run]
    methods = dict.fromkeys(method for method, _ in digests)
    pairs = {method: _of(present, method, {"ours": "defaults", "lightly": "fp32"}) for method in methods}
    pairs = {method: pair for method, pair in pairs.items() if all(pair)}
    rows, more, beyond, few = [], [], [], []
    for method, pair in pairs.items():
        row = [f"`{method}`", ", ".join(str(len(each)) for each in pair)]
        for score, name in SCORES.items():
            ours, theirs = ([100 * run[score] for run in each] for each in pair)
            gap, error = difference(ours, theirs)
            row += [_mean(ours), _mean(theirs), _signed(gap, error)]
            if math.isnan(error):
                few.append(f"`{method}`")
            if abs(gap) > 2 * error:
                beyond.append(f"{name} of `{method}` ({'above' if gap > 0 else 'below'} lightly's)")
        rows.append(row)
        before = _mean([100 * run["knn_before"] for each in pair for run in each])
        losses = (f"{_average(each, 'loss_first'):.3g} → {_average(each, 'loss_last'):.3g}" for each in pair)
        times = (f"{_average(each, name):.1f}" for name in ("minutes", "core_minutes") for each in pair)
        more.append([f"`{method}`", before, *losses, *times])
    header = ["method", "runs", "kNN, ours", "lightly", "difference", "linear, ours", "lightly", "difference"]
    also = [
        "method",
        "untrained kNN",
        "loss, ours",
        "lightly",
        "minutes, ours",
        "lightly",
        "core minutes, ours",
        "lightly",
    ]
    return (
        f"{table(header, rows)}\n{_conclusion(beyond, few, failed, bool(rows))}\n{table(also, more)}"
        f"{_alike(present, methods)}\n{_differences()}{_circumstances(present)}"
    )


def _of(runs: Sequence[Mapping[str, Any]], method: str, kinds: Mapping[str, str]) -> list[list[Mapping[str, Any]]]:
    """Returns a method's runs of each tool that is named, of one kind."""
    return [
        [run for run in runs if (run["method"], run["tool"], run["kind"]) == (method, *each)] for each in kinds.items()
    ]


def _average(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def _conclusion(beyond: Sequence[str], few: Sequence[str], failed: Sequence[str], any_rows: bool) -> str:
    if not any_rows and not failed:
        return "No method has runs of both tools yet.\n"
    parts = [f"Beyond two standard errors: {'; '.join(beyond) or 'no difference'}."]
    if few:
        parts.append(f"Too few seeds to tell: {', '.join(dict.fromkeys(few))}.")
    if failed:
        parts.append(f"Failed: {', '.join(failed)}.")
    return " ".join(parts) + "\n"


def _alike(runs: Sequence[Mapping[str, Any]], methods: Mapping[str, Any]) -> str:
    """Both in fp32, contiguous and eager, where such runs of ours are there."""
    rows = []
    for method in methods:
        pair = _of(runs, method, {"ours": "fp32", "lightly": "fp32"})
        if all(pair):
            scores = (_mean([100 * run["knn"] for run in each]) for each in pair)
            rows.append([f"`{method}`", *scores, *(f"{_average(each, 'core_minutes'):.1f}" for each in pair)])
    header = ["both in fp32, eager", "kNN, ours", "kNN, lightly", "core minutes, ours", "lightly"]
    return f"\n{table(header, rows)}" if rows else ""


def _differences() -> str:
    return table(
        ["method", "what is not the same, or was made so"], [[each, DIFFERENCES[each]] for each in DIFFERENCES]
    )


def _circumstances(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return ""

    def values(name: str) -> str:
        return ", ".join(dict.fromkeys(str(run["machine"][name]) for run in runs))

    resolved = dict.fromkeys(f"{run['precision']}, compile {run['compile']}" for run in runs if run.get("precision"))
    auto = f" ({' or '.join(resolved)})" if resolved else ""
    days = sorted(run["machine"]["time"][:10] for run in runs)
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    loads = sorted(run["machine"]["load_average"] for run in runs)
    return (
        f"\nMade by `python benchmarks/parity.py`, {span}, {values('processor')}; torch {values('torch')}, lightly "
        f"{values('lightly')}, sslcli {values('sslcli')}{auto}; load averages {loads[0]} to {loads[-1]}.\n"
    )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def _signed(gap: float, error: float) -> str:
    text = f"{gap:+.1f}".replace("-", "−")
    return text if math.isnan(error) else f"{text} ± {error:.1f}"
