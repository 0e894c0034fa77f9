"""Writes the generated parts of docs/methods.md and docs/plugins.md: tables from the code and from measured results.

    python docs/generate.py            rewrites them in place
    python docs/generate.py --check    exit code 1 if anything would change

A generated part is between `<!-- options: METHOD -->`, `<!-- exports: PACKAGE -->` or `<!-- results -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import statistics
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sslcli.cli.listing import option_rows
from sslcli.plugins import load

PAGE = Path(__file__).with_name("methods.md")
GUIDE = Path(__file__).with_name("plugins.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "methods-cifar10-cpu.json"
PART = re.compile(
    r"(<!-- (?:options: (?P<method>\w+)|exports: (?P<package>\w+)|results) -->\n).*?(<!-- end -->)", re.DOTALL
)


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


def exports(package: str) -> str:
    """What plugins can import from `sslcli.PACKAGE`: its `__all__`, and of `modules` every public name of each file."""
    whole = importlib.import_module(f"sslcli.{package}")
    rows = []
    for found in pkgutil.iter_modules(whole.__path__):
        module = importlib.import_module(f"{whole.__name__}.{found.name}")
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
            exported = name in whole.__all__
            if own and callable(value) and (exported or package == "modules"):
                origin = whole if exported else module
                rows.append([f"`{name}{_parameters(value)}`", f"`{origin.__name__}`", _plain(_sentence(value))])
    return table(["name", "in", ""], rows)


def _parameters(value: Any) -> str:
    return "" if inspect.isclass(value) else f"({', '.join(inspect.signature(value).parameters)})"


def _sentence(value: Any) -> str:
    """The first sentence of a docstring's first paragraph."""
    paragraph = " ".join((value.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^.]{3}\.) (?=[A-Z])", paragraph)[0]


def generated(text: str) -> str:
    """Returns a page with every generated part written anew."""

    def part(found: re.Match[str]) -> str:
        if found["package"]:
            return exports(found["package"])
        return options(found["method"]) if found["method"] else results()

    return PART.sub(lambda found: found[1] + part(found) + found[4], text)


def main() -> int:
    stale = 0
    for page in (PAGE, GUIDE):
        text = page.read_text(encoding="utf-8")
        new = generated(text)
        if "--check" not in sys.argv[1:]:
            page.write_text(new, encoding="utf-8")
        elif new != text:
            print(f"{page.name} is out of date: run `python docs/generate.py`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
