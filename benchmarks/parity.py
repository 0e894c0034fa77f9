"""Whether ours learns as well as lightly at the same settings, and as fast: whole runs on CIFAR-10 images.

    python benchmarks/parity.py run --root DIR/cifar10 [--methods simclr byol] [--seeds 0 1 2] [--output LEDGER]
    python benchmarks/parity.py report [--output LEDGER] [--write-docs]
    python benchmarks/parity.py steps [--write-docs]

`run`: for each method, seed and tool a process with one thread (lightly's loader has two worker processes besides)
trains, as each tool does when nothing is said (ours with `--kinds fp32` as lightly does), a ResNet-18 of width 16 with
the small stem, and evaluates the backbone by our kNN and linear probe on the test images, fitted to the training
images; the untrained backbone by kNN. Settings are in `parity_settings.py`. Each run is a line that is appended to the
ledger. One that is there with the same settings and versions is skipped, and one that was killed has left nothing, so
the command can be ended and repeated at any time; two at once need other methods or seeds. One that failed by itself is
a line that says so, and is tried again.

`report` makes the table from the ledger, `steps` compares ten training steps from the same weights on the same views.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu.lines import append, read
from page import write_part
from parity_report import tables
from parity_settings import KINDS, METHODS, digest
from report import RESULTS, circumstances, in_a_process, is_installed, say

TOOLS = ("ours", "lightly")
LEDGER = RESULTS / "parity.jsonl"
#: What identifies a run; `settings` is the digest.
KEY = ("tool", "method", "seed", "kind", "settings", "versions")


def versions(tool: str) -> dict[str, str]:
    """The versions of what trains."""
    packages = ("sslcli", "torch") if tool == "ours" else (tool, "torch", "torchvision")
    return {name: importlib.metadata.version(name) for name in packages}


def key(run: dict[str, Any]) -> str:
    return json.dumps([run[name] for name in KEY], sort_keys=True)


def planned(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs that were asked for: all methods of a seed before the next, both tools of a method one after the other,
    so that a slow hour affects both."""
    for seed in arguments.seeds:
        for method in arguments.methods:
            for tool in arguments.tools:
                for kind in arguments.kinds if tool == "ours" else ["fp32"]:
                    yield {
                        "tool": tool, "method": method, "seed": seed, "kind": kind,
                        "settings": digest(method, kind, arguments.images, arguments.epochs),
                        "images": arguments.images, "epochs": arguments.epochs, "versions": versions(tool),
                    }  # fmt: skip


def run_all(arguments: argparse.Namespace) -> int:
    """Makes the runs that are not in the ledger, or have failed; returns how many fail now, which are lines as well."""

    def work(run: dict[str, Any]) -> bool:
        if key(run) in (key(each) for each in read(arguments.ledger) if "failed" not in each):
            return False
        name = f"{run['tool']} {run['method']} seed {run['seed']} {run['kind']}"
        words = ["one", "--root", str(arguments.root), "--run", json.dumps(run)]
        # As `ssl` has it; lightly has torch's own.
        pages = {"THP_MEM_ALLOC_ENABLE": "1"} if (run["tool"], run["kind"]) == ("ours", "defaults") else {}
        try:
            found = json.loads(in_a_process(__file__, *words, OMP_NUM_THREADS="1", **pages))
        except subprocess.CalledProcessError as error:
            say(f"{name}: ended with code {error.returncode}")
            if error.returncode > 0:  # by itself
                append(arguments.ledger, {**run, "failed": error.returncode})
            return True
        append(arguments.ledger, {**run, **found})
        say(f"{name}: kNN {found['knn']:.4f} (untrained {found['knn_before']:.4f}), linear {found['linear']:.4f}, "
            f"loss {found['loss_first']:.4g} to {found['loss_last']:.4g}, {found['minutes']:.2f} min")  # fmt: skip
        return False

    arguments.ledger.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return sum(pool.map(work, planned(arguments)))


def run_one(root: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates once, in this process."""
    import parity_runs

    if digest(run["method"], run["kind"], run["images"], run["epochs"]) != run["settings"]:
        raise SystemExit("the settings have changed since this command began")
    warnings_only = logging.StreamHandler()
    warnings_only.setLevel(logging.WARNING)
    logging.getLogger("sslcli").addHandler(warnings_only)
    with tempfile.TemporaryDirectory() as folder:
        began, processor = time.perf_counter(), _processor_seconds()
        trained = parity_runs.TRAIN[run["tool"]](run, root, Path(folder))
        minutes = (time.perf_counter() - began) / 60
        used = (_processor_seconds() - processor) / 60
        scores = parity_runs.evaluate(Path(folder), root, run["images"])
    return {**trained, **scores, "minutes": minutes, "core_minutes": used, "machine": circumstances("lightly")}


def _processor_seconds() -> float:
    """Of this process and its workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | report | steps")
    run = commands.add_parser("run", help="train what the ledger lacks")
    one = commands.add_parser("one")
    report = commands.add_parser("report", help="the table of the ledger's runs")
    steps = commands.add_parser("steps", help="ten steps from the same weights")
    for each in (run, one):
        each.add_argument("--root", type=Path, required=True, help="the folder that holds cifar-10-batches-py")
    one.add_argument("--run", type=json.loads, required=True)
    for each in (run, report):
        each.add_argument("--images", type=int, default=10_000, help="training images")
        each.add_argument("--epochs", type=int, default=10)
        each.add_argument("--ledger", "--output", type=Path, default=LEDGER, help="the file with a line for each run")
    for each in (run, steps):
        each.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    report.add_argument("--seeds", nargs="+", type=int, help="of these alone (default: all)")
    run.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    run.add_argument("--kinds", nargs="+", choices=KINDS, default=["defaults"], help="of ours")
    run.add_argument("--jobs", type=int, default=1, help="runs at once")
    for each in (report, steps):
        each.add_argument("--write-docs", action="store_true", help="put the tables into docs/parity.md")
    arguments = parser.parse_args()
    if arguments.command == "one":
        print(json.dumps(run_one(arguments.root, arguments.run)))
        return
    if arguments.command != "report" and not is_installed("lightly"):
        parser.error("lightly is not installed: pip install 'sslcli[benchmark]'")
    if arguments.command == "run":
        if not (arguments.root / "cifar-10-batches-py").is_dir():
            parser.error(f"--root: no cifar-10-batches-py in {arguments.root}; give the folder that holds it")
        raise SystemExit(min(run_all(arguments), 1))
    if arguments.command == "report":
        digests = {(m, kind): digest(m, kind, arguments.images, arguments.epochs) for m in METHODS for kind in KINDS}
        runs = read(arguments.ledger)
        text = tables([run for run in runs if not arguments.seeds or run["seed"] in arguments.seeds], digests)
    else:
        from parity_steps import compare, table_of

        text = table_of({method: compare(method) for method in arguments.methods})
    print(text)
    if arguments.write_docs:
        write_part({"report": "parity", "steps": "parity-steps"}[arguments.command], text, "parity.md")


if __name__ == "__main__":
    main()
