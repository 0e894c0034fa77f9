"""The command line of `.ci/soak`.

.ci/soak kills --count 250      random kills of training runs, exports and evaluations; ends after so many
.ci/soak fuzz --minutes 60      the fuzzers of tests/fuzz
.ci/soak long                   20,000 steps: memory, open files, threads and time of a step stay the same
.ci/soak files                  2,000,000 image files are listed
.ci/soak runs                   1,000 runs are listed by `ssl runs`
.ci/soak all --minutes 60       all of them, one after the other
.ci/soak report [--write]       totals of the ledger; --write: into benchmarks/results/soak.json too
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import ledger

FUZZERS = ledger.ROOT / "tests" / "fuzz" / "run.py"
PARTS = ("runs", "files", "long", "fuzz", "kills")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=".ci/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "all", "report"])
    parser.add_argument("--minutes", type=float, default=30, help="at most, of kills and of fuzzing (default 30)")
    parser.add_argument("--count", type=int, default=10**9, help="end after so many kills, files or runs, or steps")
    parser.add_argument("--seed", type=int, help="of the first trial; each later one has the next (default: drawn)")
    parser.add_argument("--methods", default="", help="names with commas (default: all)")
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only with so many (default: with one and two)")
    parser.add_argument("--ledger", type=Path, default=ledger.LEDGER, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="report: write the summary")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that folders are removed
    if given.part == "report":
        print(ledger.report(given.ledger))
        if given.write:
            text = json.dumps(ledger.totals(ledger.read(given.ledger)), indent=2)
            ledger.SUMMARY.write_text(text + "\n", encoding="utf-8")
        return 0
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    return 1 if sum(run(part, given, seed) for part in (PARTS if given.part == "all" else [given.part])) else 0


def run(part: str, given: argparse.Namespace, seed: int) -> int:
    """Runs a part; returns how many problems it found."""
    if part == "kills":
        from . import kills

        only, processes = [name for name in given.methods.split(",") if name], [given.processes] * bool(given.processes)
        return kills.main(
            given.ledger, count=given.count, minutes=given.minutes, seed=seed, only=only, processes=processes or (1, 2)
        )
    if part == "long":
        from . import steady

        return steady.main(given.ledger, steps=min(given.count, 20_000), method=given.methods or "byol")
    if part in ("files", "runs"):
        from . import many

        count = min(given.count, 2_000_000 if part == "files" else 1000)
        return (many.files if part == "files" else many.runs)(given.ledger, count=count)
    return fuzz(given.ledger, given.minutes, seed)


def fuzz(path: Path, minutes: float, seed: int) -> int:
    """Runs the fuzzers of tests/fuzz; their last line is what they found."""
    command = [sys.executable, str(FUZZERS), "--minutes", str(minutes), "--seed", str(seed)]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    last = (done.stdout.splitlines() or [""])[-1]
    problems = [("traceback", last)] if done.returncode else []
    ledger.append(path, "fuzz", seed=seed, seconds=round(time.monotonic() - began, 1), found=last, problems=problems)
    print(f"fuzz: {last}", flush=True)
    return len(problems)


if __name__ == "__main__":
    if sys.argv[1:2] in (["kills"], ["all"]) and "LD_PRELOAD" not in os.environ:
        from . import forks

        os.execve(sys.executable, [sys.executable, "-m", "soak", *sys.argv[1:]], forks.main_environment())
    sys.exit(main(sys.argv[1:]))
