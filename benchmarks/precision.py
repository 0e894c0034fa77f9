"""Accuracy in lower precision: the same runs in fp32 and eager, in bf16, and in bf16 and compiled.

    python benchmarks/precision.py --root DIR/cifar10 [--methods simclr byol] [--seeds 0 1 2] [--jobs 2] [--output NAME]

Runs are those of `benchmarks/methods.py`, each in a process of its own with one thread. kNN top-1 on 2,000 test images
at the end; `difference` is the mean over seeds of (kNN - kNN of fp32 with the same seed), with its standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from methods import COMMON, SETTINGS, train
from report import circumstances, in_a_process, publish

#: The others are compared with the first.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"training.precision": "fp32", "training.compile": "none"},
    "bf16": {"training.precision": "bf16", "training.compile": "none"},
    "bf16 compiled": {"training.precision": "bf16", "training.compile": "all"},
}


def knn(method: str, root: Path, variant: str, seed: int) -> float:
    lines = train(method, root, {**VARIANTS[variant], "seed": seed})
    return [line["knn_top1"] for line in lines if "knn_top1" in line][-1]


def summary(runs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and spread of each variant, and its paired difference from the first, in points of a percent."""
    first = runs[next(iter(VARIANTS))]
    result = {}
    for variant, values in runs.items():
        differences = [100 * (value - first[seed]) for seed, value in values.items()]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        result[variant] = {
            "mean": round(100 * statistics.mean(values.values()), 2),
            "std": round(100 * statistics.stdev(values.values()), 2) if len(values) > 1 else math.nan,
            "difference": round(statistics.mean(differences), 2),
            "standard_error": round(error, 2),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["simclr"], choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--one", choices=list(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(knn(arguments.methods[0], arguments.root, arguments.one, arguments.seeds[0]))
        return
    runs: dict[str, dict[str, dict[str, float]]] = {m: {v: {} for v in VARIANTS} for m in arguments.methods}
    jobs = [(m, v, s) for s in arguments.seeds for m in arguments.methods for v in VARIANTS]

    def work(job: tuple[str, str, int]) -> None:
        method, variant, seed = job
        words = ("--root", str(arguments.root), "--methods", method, "--seeds", str(seed), "--one", variant)
        runs[method][variant][str(seed)] = float(in_a_process(__file__, *words, OMP_NUM_THREADS="1"))
        print(method, variant, seed, runs[method][variant][str(seed)], flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(work, jobs))
    report = {
        "what": "kNN top-1 in percent, mean ± std over seeds; difference: paired with fp32, its standard error beside",
        "task": {**COMMON, "data": "cifar10"},
        "variants": VARIANTS,
        "knn": {method: {"runs": found, **summary(found)} for method, found in runs.items()},
        **circumstances(),
    }
    publish(report, arguments.output)


if __name__ == "__main__":
    main()
