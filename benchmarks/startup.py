"""How soon the program answers: seconds from the end of `import torch` to the first step of a training run, and to the
end of an export.

    python benchmarks/startup.py [--rounds 5] [--output NAME]

Each in a process of its own that imports torch and then does what `ssl train` and `ssl export backbone` do,
alternately, after a round that does not count. `import torch` itself is the floor that nothing here can change. By the
clock: measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "quickstart.yaml"


def first_step(folder: Path) -> None:
    """In a process of its own: trains until the first step is done."""
    import sslcli.training.train as training

    class Loop(training.Loop):  # type: ignore[misc]  # the module does not export it
        def step(self) -> None:
            super().step()
            raise _FirstStep

    training.Loop = Loop  # type: ignore[misc]
    _program("train", str(CONFIG), "--output", str(folder / "run"), "--quiet")


def export(folder: Path) -> None:
    """In a process of its own: exports the backbone of the first step's run."""
    _program("export", "backbone", str(folder / "trained"), "--output", str(folder / "out"), "--force", "--quiet")


class _FirstStep(Exception):
    """Ends a run after its first step."""


def _program(*words: str) -> None:
    from sslcli.cli.main import main

    sys.argv = ["ssl", *words]
    try:
        main()
    except (_FirstStep, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code:
            raise


WAYS = {"first step of ssl train": first_step, "ssl export backbone": export}


def timed(name: str, folder: Path) -> None:
    """Prints the seconds of `import torch`, and from there to the end of the way."""
    began = time.perf_counter()
    import torch  # noqa: F401

    imported = time.perf_counter()
    WAYS[name](folder)
    print(json.dumps({"import_torch": imported - began, "seconds": time.perf_counter() - imported}))


def compare(rounds: int) -> dict[str, Any]:
    """Runs each way in each round; returns a summary of each."""
    import report  # it imports torch, which the processes measure

    found: dict[str, list[float]] = {"import torch": [], **{name: [] for name in WAYS}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.in_a_process("-m", "sslcli", "train", str(CONFIG), "data.count=128", "training.epochs=1",
            "schedule.warmup_epochs=0", "callbacks.knn=null", "--output", str(folder / "trained"))  # fmt: skip
        for number in range(rounds + 1):
            for way in WAYS:
                work = folder / f"{number}-{len(way)}"
                work.mkdir()
                (work / "trained").symlink_to(folder / "trained")
                took = json.loads(report.in_a_process(__file__, "--way", way, "--folder", str(work)))
                if number:
                    found["import torch"].append(took["import_torch"])
                    found[way].append(took["seconds"])
    return {name: report.summary(values, digits=2) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        timed(arguments.way, arguments.folder)
        return
    import report

    seconds = compare(arguments.rounds)
    report.publish({"rounds": arguments.rounds, **report.circumstances(), "seconds": seconds}, arguments.output)


if __name__ == "__main__":
    main()
