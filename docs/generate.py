"""Writes the generated parts of docs/methods.md: option tables from the code, measured figures from the results.

    python docs/generate.py            rewrites them in place
    python docs/generate.py --check    exit code 1 if anything would change

A generated part stands between `<!-- options: METHOD -->` or `<!-- results -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sslcli.cli.listing import option_rows
from sslcli.plugins import load

PAGE = Path(__file__).with_name("methods.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "methods-cifar10-cpu.json"
PART = re.compile(r"(<!-- (?:options: (?P<method>\w+)|results) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def options(method: str) -> str:
    """The options of a method, with types, defaults and help."""
    rows = option_rows(load("methods", method).Options)
    return table(
        ["option", "type", "default", ""],
        [[f"`{row['name']}`", _code(row["type"]), _code(_default(row)), _plain(row["help"])] for row in rows],
    )


def _default(row: dict[str, Any]) -> str:
    return "required" if row["required"] else json.dumps(row["default"], ensure_ascii=False)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def results() -> str:
    """Mean and standard deviation over the seeds of the methods benchmark."""
    found = json.loads(RESULTS.read_text())["methods"]
    rows = []
    for name, entry in found.items():
        if "learn" not in entry or "cost" not in entry:  # a benchmark that has not come to its end
            continue
        learned, cost = entry["learn"].values(), entry["cost"].values()
        shares = [_percent(learned, key) for key in ("knn_before", "knn_after")]
        spread = [f"{_mean(learned, 'feature_std'):.2f}", f"{_mean(learned, 'feature_rank'):.1f}"]
        paid = [f"{_mean(cost, key):.0f}" for key in ("images_per_second", "peak_memory_mib")]
        rows.append([f"`{name}`", *shares, *spread, *paid])
    header = ["method", "kNN before", "kNN after", "feature std", "effective rank", "images/s", "peak MiB"]
    return table(header, rows)


def _mean(rows: Collection[dict[str, float]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _percent(rows: Collection[dict[str, float]], key: str) -> str:
    spread = statistics.stdev(row[key] for row in rows) if len(rows) > 1 else 0.0
    return f"{100 * _mean(rows, key):.1f} ± {100 * spread:.1f} %"


def generated(text: str) -> str:
    """Returns the page with every generated part made anew."""
    return PART.sub(lambda m: m[1] + (options(m["method"]) if m["method"] else results()) + m[3], text)


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    new = generated(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print(f"{PAGE.name} is out of date: run `python docs/generate.py`", file=sys.stderr)
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
