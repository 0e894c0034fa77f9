"""Two million image files that are listed, and a thousand runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import forks, ledger

#: For two million files, and a thousand runs: seconds of processor time; MiB at the peak above what importing takes.
FILES_BOUND, FILES_MEMORY, RUNS_BOUND = 30.0, 1024.0, 1.0
_FILES_PER_FOLDER, _ORIGINALS = 1000, 100

_LIST_FILES = """
import json, resource, sys, time
from sslcli.datasets.images import Images, ImagesOptions
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
images = Images(ImagesOptions.parse({"root": sys.argv[1]}))
print(json.dumps({
    "count": len(images), "wall_seconds": round(time.perf_counter() - wall, 2),
    "cpu_seconds": round(time.process_time() - cpu, 2), "peak_mib": round(peak() - before),
    "kept_mib": round(sum(tensor.nbytes for tensor in (images.files._bytes, images.files._ends)) / 2**20),
}))
"""
_LIST_RUNS = """
import json, sys, time
from typer.testing import CliRunner
from sslcli.cli.main import app
wall, cpu = time.perf_counter(), time.process_time()
listed = CliRunner().invoke(app, ["runs", sys.argv[1]])
assert listed.exit_code == 0, listed.output
print(json.dumps({
    "count": len(listed.stdout.splitlines()) - 1, "wall_seconds": round(time.perf_counter() - wall, 2),
    "cpu_seconds": round(time.process_time() - cpu, 2), "done": listed.stdout.count(" done\\n"),
}))
"""


def files(path: Path, *, count: int) -> int:
    """Lists so many image files, which are hard links to a hundred; returns the number of problems."""
    count -= count % _FILES_PER_FOLDER
    where = Path("/dev/shm") if _has_room(Path("/dev/shm"), count) else Path(tempfile.gettempdir())
    with forks.scratch(where) as folder:
        _link(folder, count)
        found = _measured(_LIST_FILES, folder / "images")
    problems = _problems(found, count, FILES_BOUND * max(count / 2e6, 0.1))
    if found["peak_mib"] > FILES_MEMORY:
        problems.append(("left", f"{found['peak_mib']} MiB at the peak, of {FILES_MEMORY:.0f}"))
    return _told(path, "files", found, problems)


def runs(path: Path, *, count: int) -> int:
    """Lists so many finished runs; returns the number of problems."""
    with forks.scratch() as folder:
        _copy_runs(folder, count)
        found = _measured(_LIST_RUNS, folder / "runs")
    problems = _problems(found, count, RUNS_BOUND * max(count / 1000, 0.1))
    if found["done"] != count:
        problems.append(("different", f"{found['done']} of {count} runs are said to be done"))
    return _told(path, "runs", found, problems)


def _has_room(folder: Path, links: int) -> bool:
    """Whether there are inodes for so many links (tmpfs counts each), with as many left."""
    return folder.is_dir() and os.statvfs(folder).f_favail > 1.2 * links


def _link(folder: Path, count: int) -> None:
    from PIL import Image

    originals = [folder / "originals" / f"{number}.png" for number in range(_ORIGINALS)]
    originals[0].parent.mkdir()
    for number, original in enumerate(originals):
        Image.new("L", (8, 8), number).save(original)
    for number in range(count // _FILES_PER_FOLDER):
        inner = f"{folder}/images/{number // 100:03d}/folder-{number:05d}"
        os.makedirs(inner)
        for each in range(_FILES_PER_FOLDER):
            os.link(originals[each % _ORIGINALS], f"{inner}/IMG_{number:05d}_{each:04d}.png")


def _copy_runs(folder: Path, count: int) -> None:
    """One finished run with a log of 2,000 lines, copied; of checkpoints only the names count."""
    command = [sys.executable, "-m", "sslcli", "train", "quickstart", "data.count=64", "training.batch_size=32",
               "training.epochs=2", "backbone.width=4", "--output", "first", "--quiet"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    first, log = folder / "first", (folder / "first" / "metrics.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()
    log.write_text("\n".join([lines[0]] * 2000 + lines) + "\n", encoding="utf-8")
    for kept in [*first.glob("checkpoints/*"), first / "backbone.safetensors"]:
        kept.write_bytes(b"")
    for number in range(count):
        shutil.copytree(first, folder / "runs" / f"run-{number:04d}")


def _measured(code: str, folder: Path) -> dict[str, Any]:
    """What a new interpreter prints."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ssl soak: {done.stderr[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _problems(found: dict[str, Any], count: int, bound: float) -> list[tuple[str, str]]:
    problems = [("lost", f"{found['count']} of {count}")] if found["count"] != count else []
    if found["cpu_seconds"] > bound:
        problems.append(("late", f"{found['cpu_seconds']} s of processor time, of {bound:.2f}"))
    return problems


def _told(path: Path, part: str, found: dict[str, Any], problems: list[tuple[str, str]]) -> int:
    ledger.append(path, part, **found, problems=problems)
    print(f"{part}: {found}", *problems, sep="\n", flush=True)
    return len(problems)
