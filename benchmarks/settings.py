"""What each setting of a step wins here: SimCLR on CIFAR-10 as `ssl train` runs it, and with one thing changed.

    python benchmarks/settings.py DATA_ROOT [--width 16] [--batch 256] [--rounds 3] [--output NAME]

Measured like `benchmarks/beside_lightly.py`: every way in a process of its own, in turns; ratios within a round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from beside_lightly import Task, Way, measure_rounds
from report import circumstances, publish, summary

DEFAULTS = "defaults"
WAYS = {
    DEFAULTS: Way("ours", huge_pages=True),
    "backbone eager": Way("ours", ("training.compile=views",), huge_pages=True),
    "all eager": Way("ours", ("training.compile=none",), huge_pages=True),
    "no huge pages": Way("ours"),
    "contiguous": Way("ours", ("training.channels_last=false",), huge_pages=True),
    "fp32": Way("ours", ("training.precision=fp32",), huge_pages=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT", help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18; 64 is the usual one")
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=12, help="steps that count, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    given = parser.parse_args()
    tasks = {
        name: Task(way, given.root.absolute(), given.width, given.batch, 0, given.warm_up, given.steps)
        for name, way in WAYS.items()
    }
    speeds, made = measure_rounds(tasks, given.rounds)
    ratios = {
        name: summary([one / other for one, other in zip(speeds[DEFAULTS], speeds[name], strict=True)], 3)
        for name in WAYS
    }
    report = {
        "what": "images per second of SimCLR training steps on CIFAR-10; ratios are defaults / way, within a round",
        "images_per_second": {name: summary(values) for name, values in speeds.items()},
        "ratios": ratios,
        "made": made,
        **{name: getattr(given, name) for name in ("width", "batch", "warm_up", "steps", "rounds")},
        **circumstances(),
    }
    publish(report, given.output)


if __name__ == "__main__":
    main()
