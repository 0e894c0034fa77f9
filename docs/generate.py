"""Writes what the documentation has from the code and from measured results.

    python docs/generate.py            rewrites the generated parts of docs/methods.md and docs/plugins.md
    python docs/generate.py --check    exit code 1 if anything in them would change

A generated part of those pages is between `<!-- exports: PACKAGE -->` or `<!-- results -->` and `<!-- end -->`. The
site's option pages and API pages (`write_pages`) are written at each build and not committed.
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
from sslcli.plugins import GROUPS, find, load, load_found

REPOSITORY = "https://github.com/sslcli/sslcli"
PAGE = Path(__file__).with_name("methods.md")
GUIDE = Path(__file__).with_name("plugins.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "methods-cifar10-cpu.json"
PART = re.compile(r"(<!-- (?:exports: (?P<package>\w+)|results) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Packages with an API page, and how many of their modules it shows: all, or only what the package itself exports.
API = {"contracts": "modules", "losses": "package", "modules": "modules", "testing": "package"}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def options(cls: Any) -> str:
    """The options of a plugin class, with types, defaults and help."""
    return table(
        ["option", "type", "default", ""],
        [
            [f"`{row['name']}`", _code(row["type"]), _code(_default(row)), _plain(row["help"])]
            for row in option_rows(cls.Options)
        ],
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
        if "learn" not in entry or "cost" not in entry:  # the benchmark was interrupted here
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
    return f"{100 * _mean(rows, key):.1f} ± {100 * spread:.1f}%"


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
    """Returns a page with every generated part rewritten."""
    return PART.sub(lambda m: m[1] + (exports(m["package"]) if m["package"] else results()) + m[3], text)


def options_page(group: str) -> str:
    """Every plugin of a group that this package registers: what it is, its paper, its options."""
    page = [f"# Options of {group}\n", f"Generated from the classes; `ssl list {group} NAME` prints the same.\n"]
    for plugin in find(group):
        if plugin.package != "sslcli":
            continue
        cls: Any = load_found(plugin)
        page.append(f"## {plugin.name}\n\n{_summary(cls)}")
        if paper := getattr(cls, "paper", ""):
            page.append(f"Paper: <{paper}>\n")
        if not hasattr(cls, "names"):
            page.append(options(cls) if cls.Options.model_fields else "No options.\n")
            continue
        members: dict[str, list[str]] = {}  # of a plugin that provides many: their names, by table of options
        for name in sorted(cls.names()):
            members.setdefault(options(load(group, f"{plugin.name}/{name}")), []).append(f"`{plugin.name}/{name}`")
        page += [f"{', '.join(names)}:\n\n{rows}" for rows, names in members.items()]
    return "\n".join(page)


def _summary(cls: type) -> str:
    """The first paragraph of a docstring, as Markdown."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split()) + "\n"


def api_page(package: str, shown: str) -> str:
    """The documented names of `sslcli.PACKAGE`, from its docstrings."""
    full = f"sslcli.{package}"
    parts = [full]
    if shown == "modules":
        found = pkgutil.iter_modules(importlib.import_module(full).__path__)
        parts = [f"{full}.{module.name}" for module in found if not module.name.startswith("_")]
    page = [f"# {full}\n"]
    for part in parts:
        page.append(f"## {part}\n" if part != full else "")
        page.append(f"```{{eval-rst}}\n.. automodule:: {part}\n```\n")
    return "\n".join(page)


def write_pages(folder: Path) -> None:
    """Writes the site's option pages and API pages into `folder`."""
    pages = {f"options-{group}": options_page(group) for group in GROUPS}
    pages |= {f"api-{package}": api_page(package, shown) for package, shown in API.items()}
    folder.mkdir(exist_ok=True)
    for stale in {path.stem for path in folder.glob("*.md")} - pages.keys():
        (folder / f"{stale}.md").unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not built again
            path.write_text(text, encoding="utf-8")


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
