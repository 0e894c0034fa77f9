"""Results as a reader wants them: one table with a row for each, or a line for each number; and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sslcli.contracts.evaluation import EvaluationResult


@dataclass
class Row:
    """One result: of which target, by which evaluator, and the file it was written to, if any."""

    target: str
    method: str
    result: EvaluationResult
    written: Path | None = None

    def plain(self) -> dict[str, Any]:
        """Returns what `--json` prints for one result: metrics at the top level, accuracies as shares."""
        result = self.result
        spread = {"std": result.spread} if result.spread else {}
        return {**result.metrics, **spread, "method": self.method, "protocol": result.protocol}

    def full(self) -> dict[str, Any]:
        """Returns what files hold."""
        result = self.result
        spread = {"std": result.spread} if result.spread else {}
        return {
            "method": self.method, "metrics": result.metrics, **spread, "protocol": result.protocol,
            "details": result.details,
        }  # fmt: skip


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what `--json` prints for several results: `{"results": [{"target", "method", "metrics", "std", …}]}`."""
    results = []
    for row in rows:
        content = {key: value for key, value in row.full().items() if key != "details"}
        results.append({"target": row.target, **content, "file": str(row.written) if row.written else None})
    return {"results": results}


def number(name: str, result: EvaluationResult) -> str:
    """One metric as text: accuracies (`top1`) in percent, and behind ± the standard deviation over seeds."""
    value, spread = result.metrics.get(name), result.spread.get(name)
    if value is None:
        return "–"
    if name.startswith("top"):
        return f"{value:.2%}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the header and the rows of the table; a metric that a result does not have is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row.result.metrics))
    several = len({row.method for row in rows}) > 1
    header = ["target", *(["method"] if several else []), *names]
    body = [
        [row.target, *([row.method] if several else []), *(number(name, row.result) for name in names)] for row in rows
    ]
    return [header, *body]


def lines(result: EvaluationResult) -> list[str]:
    """Returns a line for each metric of a single result."""
    width = max(len(name) for name in result.metrics)
    return [f"{name:<{width}}  {number(name, result)}" for name in result.metrics]


def plain_table(rows: Sequence[Row]) -> list[str]:
    """Returns aligned lines for files and pipes; the texts to the left, the numbers to the right."""
    table = cells(rows)
    texts = len(table[0]) - len({name for row in rows for name in row.result.metrics})
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def rich_table(rows: Sequence[Row]) -> Table:
    """Returns the same for a terminal."""
    header, *body = cells(rows)
    texts = len(header) - len({name for row in rows for name in row.result.metrics})
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < texts else "right", overflow="fold", no_wrap=place >= texts)
    for row in body:
        table.add_row(*(Text(cell) for cell in row))  # not markup: a path may have brackets in it
    return table
