"""The ledger `benchmarks/results/GPU.md`: which stages and rungs have run, when, with what result; what is next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page import table, with_part

from . import found, packing
from .rungs import PIECES_A_CALL, RUNGS
from .stages import STAGES
from .tables import PREDICTED_RATE

NAME = "GPU.md"
_HEADER = ("date", "device", "commit", "stage or rung", "result")
#: Seconds of training in a call, after start, and bytes of one call that pieces may take: `prepare.py`'s.
_SECONDS, _ROOM = 430, 6


def add(path: Path, where: Mapping[str, Any], stage: str, text: str) -> None:
    """Adds a row, unless it is there; rows are never removed."""
    page = path.read_text(encoding="utf-8")
    commit = str(where["commit"] or "unknown")
    row = [where["date"][:16].replace("T", " "), where["device"], commit[:7] + "+" * commit.endswith("+"), stage]
    line = [*row, text.replace("|", "/").replace("\n", " ")]
    rows = read_rows(page)
    if line not in rows:
        path.write_text(with_part(page, "runs", table(_HEADER, [*rows, line])), encoding="utf-8")


def read_rows(page: str) -> list[list[str]]:
    """Returns the rows of the table of runs."""
    part = page.partition("<!-- runs -->")[2].partition("<!-- /runs -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.split("\n") if line.startswith("|")]
    return rows[2:]


def refresh(results: Path) -> None:
    """Writes the generated parts of the ledger again: the ladder, and what comes next."""
    path = results / NAME
    page = with_part(path.read_text(encoding="utf-8"), "ladder", ladder(results))
    path.write_text(with_part(page, "next", coming(results)), encoding="utf-8")


def calls(name: str) -> tuple[int, int]:
    """Returns how many pieces a rung needs at the lower predicted rate, and how many calls all of them together.

    Every piece needs the two halves of the images; one that goes on needs the pieces of the packed run, one beside each
    half; one that does not arrive brings them back.
    """
    rung = RUNGS[name]
    pieces = math.ceil(rung.images / PREDICTED_RATE[0] / _SECONDS)
    files = math.ceil(rung.megabytes * 1e6 / packing.PIECE)
    more_there, more_back = math.ceil(max(0, files - 2) / _ROOM), math.ceil(files / PIECES_A_CALL) - 1
    return pieces, 2 * pieces + (pieces - 1) * (more_there + more_back)


def ladder(results: Path) -> str:
    """Returns the table of rungs: what each needs, and whether it has arrived."""
    rows = []
    for name, rung in RUNGS.items():
        pieces, count = calls(name)
        kept = found.load(results, name)
        state = "arrived" if found.arrived(kept) else "begun" if kept else "not begun"
        rows.append([name, f"`{rung.config}`", str(pieces), str(count), f"{rung.megabytes} MB", state])
    return table(["rung", "config", "pieces", "calls", "packed run", "state"], rows)


def coming(results: Path) -> str:
    """Returns what to run next, and how."""
    stages = [name for name in STAGES if found.load(results, name) is None]
    rungs = [name for name in RUNGS if not found.arrived(found.load(results, name))]
    parts = []
    if stages:
        parts.append(f"Stages that have no result: {', '.join(stages)} (`.ci/gpu prepare --cifar FOLDER`).")
    if rungs:
        begun = found.load(results, rungs[0])
        state = " --state FOLDER" if begun else ""
        done = f" from step {found.named(begun['records'], 'piece', 'to'):,}" if begun else ""
        parts.append(f"Next rung: {rungs[0]}{done} (`.ci/gpu prepare --cifar FOLDER --rung {rungs[0]}{state}`).")
    return " ".join(parts) or "Everything has run."
