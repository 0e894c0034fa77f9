"""The ledger of `.ci/soak`: a line of JSON for each trial in a file that grows over days, and its totals."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Not in git; the summary is.
LEDGER = ROOT / ".soak" / "ledger.jsonl"
SUMMARY = ROOT / "benchmarks" / "results" / "soak.json"
PROBLEMS = ("lost", "different", "left", "traceback", "late")
_COUNTED = ("command", "method", "processes", "signal", "moment")


@cache
def commit() -> str:
    """The commit that is tried, with `+` if files have been changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def append(path: Path, part: str, **values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"part": part, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), **values}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines; one that a kill has cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def totals(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sums of all kills, and the last line of every other part with how often it was run."""
    kinds: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    problems = Counter[str](dict.fromkeys(PROBLEMS, 0))
    starts = runs = 0
    seconds = 0.0
    others: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["part"] != "kills":
            before = others.get(line["part"], {"times": 0, "minutes": 0.0, "failed": 0})
            others[line["part"]] = {
                "times": before["times"] + 1,
                "minutes": round(before["minutes"] + line.get("seconds", 0.0) / 60, 1),
                "failed": before["failed"] + bool(line.get("problems")),
                "last": {key: value for key, value in line.items() if key not in ("part", "problems")},
            }
            continue
        runs += 1
        starts += line["starts"]
        seconds += line["seconds"]
        problems.update(kind for kind, _ in line["problems"])
        for kill in line["kills"]:
            for name in ("command", "method", "processes"):
                kinds[name][str(line[name])] += 1
            kinds["signal"][kill["signal"]] += 1
            kinds["moment"][kill["moment"]] += 1
    kills = {
        "runs": runs, "starts": starts, "kills": sum(kinds["signal"].values()), "minutes": round(seconds / 60, 1),
        **problems, **{f"by_{name}": dict(sorted(counter.items())) for name, counter in kinds.items()},
    }  # fmt: skip
    return {"kills": kills, **dict(sorted(others.items()))}


def report(path: Path) -> str:
    """Returns the totals as text: of the kills, and for each other part how often it ran and what it measured last."""
    lines = read(path)
    found = totals(lines)
    kills = found.pop("kills")
    text = [
        f"kills: {kills['kills']} in {kills['runs']} runs, {kills['starts']} starts, {kills['minutes']} min",
        f"  lost runs {kills['lost']}, different weights {kills['different']}, left behind {kills['left']}, "
        f"tracebacks {kills['traceback']}, too late {kills['late']}",
    ]
    text += [
        f"  by {name}: " + ", ".join(f"{key} {count}" for key, count in kills[f"by_{name}"].items())
        for name in _COUNTED
    ]
    for name, part in found.items():
        times = f"{part['times']} time{'s' * (part['times'] > 1)}"
        text.append(f"{name}: {times}, {part['minutes']} min, {part['failed']} with problems")
        text.append("  last: " + ", ".join(f"{key} {value}" for key, value in part["last"].items()))
    for line in lines:
        for kind, problem in line.get("problems", []):
            text.append(f"{kind}: {line['part']} of {line['time']}, seed {line.get('seed')}: {problem}")
    return "\n".join(text)
