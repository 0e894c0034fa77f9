"""Results for a reader: one table with a row for each, or a line for each number; and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sslcli.contracts.evaluation import EvaluationResult
from sslcli.contracts.export import Trained
from sslcli.logs import shown

#: What only files hold.
_LONG = ("details", "classifier")


@dataclass
class Row:
    """One result: of which target, by which evaluator, and the file it was written to, if any.

    Attributes:
        classifier: what was trained, until it is written.
        made_on: digests of the network's file and weights where the classifier is written without it.
        kept: the classifier's file, beside that of the result, and its digest.
    """

    target: str
    method: str
    result: EvaluationResult
    written: Path | None = None
    classifier: Trained | None = None
    made_on: dict[str, str] | None = None
    kept: dict[str, str] | None = None

    def full(self) -> dict[str, Any]:
        """Returns what files hold."""
        result = self.result
        spread = {"std": result.spread} if result.spread else {}
        return {
            "method": self.method, "metrics": result.metrics, **spread, "protocol": result.protocol,
            "details": result.details, **({"classifier": self.kept} if self.kept else {}),
        }  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """Returns what `--json` prints for one result: metrics at the top level, accuracies as fractions."""
        full = self.full()
        return {**full.pop("metrics"), **{key: value for key, value in full.items() if key not in _LONG}}


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what `--json` prints for several results: `{"results": [{"target", "method", "metrics", "std", …}]}`."""
    results = []
    for row in rows:
        content = {key: value for key, value in row.full().items() if key not in _LONG}
        results.append({"target": row.target, **content, "file": str(row.written) if row.written else None})
    return {"results": results}


def cells(rows: Sequence[Row]) -> tuple[list[list[str]], int]:
    """Returns the header and the rows of the table, and how many of the first columns are texts: the target, and the
    method where there are several. A metric that a result does not have is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row.result.metrics))
    texts = 2 if len({row.method for row in rows}) > 1 else 1
    body = [[*(row.target, row.method)[:texts], *(row.result.text(name) for name in names)] for row in rows]
    table = [[*("target", "method")[:texts], *names], *body]
    return [[shown(cell) for cell in line] for line in table], texts


def lines(result: EvaluationResult) -> list[str]:
    """Returns a line for each metric of a single result."""
    width = max(len(shown(name)) for name in result.metrics)
    return [f"{shown(name):<{width}}  {result.text(name)}" for name in result.metrics]


def plain_table(rows: Sequence[Row]) -> list[str]:
    """Returns aligned lines for files and pipes: text left-aligned, numbers right-aligned."""
    table, texts = cells(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def rich_table(rows: Sequence[Row]) -> Table:
    """Returns the table for a terminal."""
    (header, *body), texts = cells(rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        is_text = column < texts
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in body:
        table.add_row(*map(Text, row))  # not markup: a path may have brackets in it
    return table
