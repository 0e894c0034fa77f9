"""Writes what the documentation has from the code and from measured results.

    python docs/generate.py            rewrites the generated parts of docs/methods.md and docs/plugins.md, and
                                       docs/config.md, the schema of the example configs with the line that names it
                                       in each of them, and the catalog of `ssl list` and completion
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

from sslcli.cli import catalog
from sslcli.config.json_schema import config_schema
from sslcli.config.rows import option_rows, summary_of
from sslcli.plugins import GROUPS, find, load, load_found

REPOSITORY = "https://github.com/sslcli/sslcli"
PAGE = Path(__file__).with_name("methods.md")
GUIDE = Path(__file__).with_name("plugins.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "methods-cifar10-cpu.json"
CONFIG_PAGE = PAGE.with_name("config.md")
CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
SCHEMA = CONFIGS / "config.schema.json"
PART = re.compile(r"(<!-- (?:exports: (?P<package>\w+)|results) -->\n).*?(<!-- end -->)", re.DOTALL)
SCHEMA_LINE = "# yaml-language-server: $schema="
CONFIG_INTRO = """\
# Options of a config

Generated from the classes by `python docs/generate.py`: what each section of a config can hold, with all plugins of
this package. `ssl list` shows the same for what is installed: `ssl list SECTION`, `ssl list GROUP NAME`. Every option
can be set on the command line too: `ssl train CONFIG training.epochs=5 optimizer.lr=0.1 callbacks.knn=null`.

*On resume* says whether a resumed run may have another value: *free*, with a warning (*warn*), or not (*fixed*).
"""
#: Groups that a config does not name, and how their options are set.
AFTER_TRAINING = {
    "evaluators": "Options of `ssl eval --method NAME`, such as `ssl eval RUN --method knn k=[20]`.",
    "exporters": "Options of `ssl export NAME`, such as `ssl export backbone RUN format=timm`.",
}
#: Packages with an API page, and how many of their modules it shows: all, or only what the package itself exports.
API = {"contracts": "modules", "losses": "package", "modules": "modules", "testing": "package"}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def options(cls: Any) -> str:
    """The options of a plugin class, with types, defaults and help."""
    return rows_table(option_rows(cls.Options))


def rows_table(rows: list[dict[str, Any]], *, resume: bool = False) -> str:
    """A table of options, perhaps with what a resumed run may change."""
    header = ["option", "type", "default", *(["on resume"] if resume else []), ""]
    lines = [
        [
            f"`{row['name']}`", _code(row["type"]), _code(_default(row)), *([row["resume"]] if resume else []),
            _plain(row["help"]),
        ]
        for row in rows
    ]  # fmt: skip
    return table(header, lines)


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
                rows.append(
                    [f"`{name}{_parameters(value)}`", f"`{origin.__name__}`", _plain(summary_of(value.__doc__))]
                )
    return table(["name", "in", ""], rows)


def _parameters(value: Any) -> str:
    return "" if inspect.isclass(value) else f"({', '.join(inspect.signature(value).parameters)})"


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


def config_page(known: dict[str, Any]) -> str:
    """Every option of a config, of evaluations and of exports, with those of all plugins of this package.

    Args:
        known: `catalog.build()`.
    """
    page = [CONFIG_INTRO]
    for section, each in known["sections"].items():
        page.append(f"## {section}\n\n{each['summary']}\n")
        if each["options"] and (section == "views" or each["group"] is None):
            rows = [row for row in each["options"] if section != "views" or "." not in row["name"]]
            page.append(rows_table(rows, resume=section != "views"))
        page += _plugins(each["group"], known["plugins"][each["group"]], resume=True) if each["group"] else []
    for group, about in AFTER_TRAINING.items():
        page.append(f"## {group}\n\n{about}\n")
        page += [f"Of every evaluation:\n\n{rows_table(known['evaluation'])}"] if group == "evaluators" else []
        page += _plugins(group, known["plugins"][group], resume=False)
    return "\n".join(page)


def _plugins(group: str, known: dict[str, Any], *, resume: bool) -> list[str]:
    """The plugins of a group; those with the same options (sizes of a backbone) together."""
    alike: dict[str, list[str]] = {}
    for name, found in known.items():
        rows = rows_table(found["options"], resume=resume) if found["options"] else "No options.\n"
        alike.setdefault(rows, []).append(name)
    noun = "view" if group == "augmentations" else GROUPS[group].noun
    parts = []
    for rows, names in alike.items():
        about = [_plain(known[name]["summary"]) + " (Default.)" * known[name]["default"] for name in names]
        parts.append(f"### {noun} {', '.join(names)}\n\n" + "  \n".join(about) + f"\n\n{rows}")
    return parts


def schema_file() -> str:
    """The JSON Schema of a config with the plugins of this package."""
    return compact(config_schema([catalog.PACKAGE]))


def compact(data: Any) -> str:
    """JSON with one line for each option."""
    return re.sub(r"\n {6,}|\n {5}(?=[}\]])", " ", json.dumps(data, indent=1, ensure_ascii=False)) + "\n"


def with_schema(path: Path) -> str:
    """A config's text, whose first line tells editors where the schema is."""
    text = path.read_text(encoding="utf-8")
    depth = len(path.relative_to(CONFIGS).parts) - 1
    first, _, rest = text.partition("\n")
    rest = rest if first.startswith(SCHEMA_LINE) else text
    return f"{SCHEMA_LINE}{'../' * depth}{SCHEMA.name}\n{rest}"


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


def files() -> dict[Path, str]:
    """Every committed file that has generated parts, as it should be."""
    found = {page: generated(page.read_text(encoding="utf-8")) for page in (PAGE, GUIDE)}
    known = catalog.build()
    found |= {catalog.FILE: compact(known), CONFIG_PAGE: config_page(known), SCHEMA: schema_file()}
    return found | {path: with_schema(path) for path in sorted(CONFIGS.rglob("*.yaml"))}


def main() -> int:
    stale = 0
    for path, new in files().items():
        if path.exists() and path.read_text(encoding="utf-8") == new:
            continue
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
        else:
            print(f"{path.name} is out of date: run `python docs/generate.py`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
