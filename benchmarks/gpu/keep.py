"""Moves what a lent machine brought back into the repository: result files, tables of the documentation, ledger."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import PAGE, with_part

from . import found, ledger, lines, tables
from .rungs import ROOT, RUNGS
from .stages import STAGES

RESULTS = Path(__file__).parents[1] / "results"
#: Where the pieces of an interrupted rung wait; ignored by git.
WAITING = ROOT / ".gpu-state"
_PATH = re.compile(r"(?<![\w.:/])/(?:[\w.@+-]+/)+")


def keep(folder: Path, into: Path | None = None) -> Iterator[str]:
    """Keeps the results in a folder; yields what was done.

    Args:
        folder: with `results.jsonl`, and pieces of a rung that was interrupted.
        into: a folder instead of the repository's files, for a dry run: copies of the page and the ledger are changed.

    Raises:
        ValueError: the results do not say where they are from, or are a dry run's.
    """
    records = [_without_paths(record) for record in lines.read(folder / "results.jsonl")]
    about = next((r for r in records if r["name"] == "about" and "device" in r), None)
    if about is None:
        raise ValueError(f"{folder / 'results.jsonl'}: does not say on which device it ran; not kept")
    results, page = into or RESULTS, into / PAGE.name if into else PAGE
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        for path in (PAGE, RESULTS / ledger.NAME):
            shutil.copy(path, into)
    elif not about["device"].startswith("NVIDIA"):
        raise ValueError(f"{folder}: is a dry run on {about['device']}; not kept (--into FOLDER shows what would be)")
    where = {key: about[key] for key in ("device", "date", "commit", "versions")}
    for stage in (*STAGES, *RUNGS):
        own = [{k: v for k, v in r.items() if k != "stage"} for r in records if r["stage"] == stage]
        if not found.found(own) and not found.failed(own):
            continue
        text = found.summary(stage, own)
        ledger.add(results / ledger.NAME, where, stage, text)
        yield f"{stage}: {text}"
        if not found.found(own):  # what was found before is worth more than a failure, which the ledger has
            continue
        before = found.load(results, stage) if stage in RUNGS else None
        kept = {"stage": stage, **where, "records": _joined(before, where, own) if stage in RUNGS else own}
        (results / f"gpu-{stage}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for piece in sorted(folder.glob("G*.[0-9][0-9][0-9]")):
        target = (into or WAITING) / piece.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if piece.suffix == ".000":  # of another packing, whose pieces would not fit to these
            for old in target.parent.glob(f"{piece.stem}.[0-9][0-9][0-9]"):
                old.unlink()
        shutil.copy(piece, target)
        yield f"{piece.name}: for `.ci/gpu prepare --rung {piece.stem} --state {target.parent.name}`"
    ledger.refresh(results)
    page.write_text(with_part(page.read_text(encoding="utf-8"), "gpu", tables.page(results)), encoding="utf-8")
    yield ledger.coming(results)


def _joined(before: found.Kept | None, where: dict[str, Any], own: found.Records) -> found.Records:
    """The pieces of a rung so far, each with where it ran; one that starts at step 0 starts over."""
    pieces = [{**r, **{k: where[k] for k in ("device", "date", "commit")}} if r["name"] == "piece" else r for r in own]
    first = next((r["from"] for r in pieces if r["name"] == "piece"), None)
    return pieces if before is None or first == 0 else [*before["records"], *pieces]


def _without_paths(value: Any) -> Any:
    """The value without the folders of absolute paths, and without the command lines of `ssl bench`."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items() if key != "command"}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return _PATH.sub("", value) if isinstance(value, str) else value
