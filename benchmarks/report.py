"""What the benchmarks share: medians with extremes, processes of their own, machine and versions, result files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslcli.runs.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
NOT_INSTALLED = "not installed"


def measure(ways: Mapping[str, Callable[[int], Any]], images: Mapping[str, int], repeats: int) -> dict[str, Any]:
    """Runs each way once per round, after a first round that does not count; returns images per second.

    Args:
        ways: what to measure; called with the number of the round.
        images: how many images each processes.
        repeats: rounds that count.

    Returns:
        `images_per_second` by the clock and `images_per_core_second` by the processor time used: a `summary` each.
    """
    clock: dict[str, list[float]] = {name: [] for name in ways}
    core: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(repeats + 1):
        for name, way in ways.items():
            start, start_core = time.perf_counter(), time.process_time()
            way(epoch)
            if epoch:  # the first round warms up
                clock[name].append(images[name] / (time.perf_counter() - start))
                core[name].append(images[name] / (time.process_time() - start_core))
    return {
        "images_per_second": {name: summary(values) for name, values in clock.items()},
        "images_per_core_second": {name: summary(values) for name, values in core.items()},
    }


def summary(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median and extremes, rounded."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratios(speeds: Mapping[str, Mapping[str, float]], ours: Sequence[str], others: Sequence[str]) -> dict[str, float]:
    """Each of ours over each of the others, by their medians, if both were measured."""
    return {
        f"{our} / {other}": round(speeds[our]["median"] / speeds[other]["median"], 2)
        for our in ours
        for other in others
        if our in speeds and other in speeds
    }


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def in_a_process(script: str, *words: str, **environment: str) -> str:
    """Runs a benchmark in a process of its own; returns the last line that it prints."""
    command, variables = [sys.executable, script, *words], {**os.environ, **environment}
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def circumstances(*packages: str) -> dict[str, Any]:
    """Returns time, command (with paths shortened), machine and versions, also those of Pillow and `packages`."""
    words = [re.sub(r"(^|=)/(?:.*/)?([^/]+)/*$", r"\1DIR/\2", word) for word in sys.argv[1:]]
    return {
        **describe_environment(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "load_average": round(os.getloadavg()[0], 1),
        "pillow": importlib.metadata.version("pillow"),
        **{name: importlib.metadata.version(name) if is_installed(name) else NOT_INSTALLED for name in packages},
    }


def say(text: str) -> None:
    """Prints a line on stderr, since stdout is for the report."""
    print(text, file=sys.stderr, flush=True)


def publish(report: Mapping[str, Any], name: str | None) -> None:
    """Prints a report, and writes it to `benchmarks/results/` if it has a name."""
    text = json.dumps(report, indent=2)
    print(text)
    if name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).with_suffix(".json").write_text(text + "\n")
