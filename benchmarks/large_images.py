"""What pre-training on photographs gains: 64 px views of JPEG files, from scratch and from published-style weights.

    python benchmarks/large_images.py run PHOTOGRAPHS --cifar DIR/cifar10 [--seeds 0 1 2] [--jobs 1] [--work FOLDER]
    python benchmarks/large_images.py run PHOTOGRAPHS --cifar DIR/cifar10 --held-out --seeds 100 --set optimizer.lr=1e-3
    python benchmarks/large_images.py report [--write-docs]

PHOTOGRAPHS has train/ and val/ with a folder for each class. Each run is a process with one thread: SimCLR with a
narrow ResNet-18 on the images of train/, without their labels; kNN (k 20) and a linear probe, fitted to train/ with
labels and tested on val/, of the network before and after. A line is added to the ledger for each; those that are there
with the same settings are skipped, and runs that were ended go on where they were.

The start `published` is what a user has who takes supervised weights of other images from a file with torchvision's
names: no weights can be had offline, so they are made here, by supervised contrastive training on 20,000 images of
CIFAR-10, enlarged to 64 px, and saved under those names. `--held-out` chooses settings: on three quarters of train/,
tested on the rest. Such runs are in the ledger but not in the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu.lines import append, read
from page import table, write_part
from parity import versions
from report import RESULTS, circumstances, in_a_process, say

LEDGER = RESULTS / "large-images.jsonl"
STARTS = ("scratch", "published")
KEY = ("start", "seed", "part", "settings", "weights", "versions")
NETWORK: dict[str, Any] = {"backbone.name": "resnet18", "backbone.stem": "standard", "backbone.width": 16}
COMMON: dict[str, Any] = {
    **NETWORK,
    "views.preset": "simclr",
    "views.size": 64,
    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-4},
    "training.compile": "none",
    "training.workers": 0,
    "callbacks.tensorboard": None,
    "callbacks.knn.every_epochs": 20,
    "callbacks.knn.pixels": True,
}
#: The first that were tried, on seed 100 and held-out images; nothing else was compared yet.
SETTINGS: dict[str, Any] = {
    **COMMON,
    "method": {"name": "simclr", "temperature": 0.2},
    "data.name": "folder",
    "data.cache": "memory",
    "views.crop_scale": [0.2, 1.0],
    "schedule.warmup_epochs": 5,
    "training.epochs": 100,
    "training.batch_size": 64,
}
PUBLISHED: dict[str, Any] = {
    **COMMON,
    "method": {"name": "supcon", "temperature": 0.1, "projector": {"hidden_dim": 256}},
    "data.name": "cifar10",
    "data.limit": 20_000,
    "views.crop_scale": [0.3, 1.0],
    "schedule.warmup_epochs": 0.5,
    "training.epochs": 5,
    "training.batch_size": 128,
}


def published(cifar: Path, work: Path) -> Path:
    """Returns the file of the weights that stand for published ones; makes it if it is not there."""
    import torch

    import sslcli

    file = work / f"published-{digest(PUBLISHED)}.pth"
    if not file.exists():
        values = {**PUBLISHED, "data.root": str(cifar)}
        run = sslcli.train(overrides=values, output=file.with_suffix(""), resume=True)
        if run.signal is not None:  # an interrupted run goes on the next time
            raise SystemExit(128 + run.signal)
        torch.save(run.backbone().export_state()[0], file)
    return file


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def held_out(photographs: Path, work: Path) -> Path:
    """Returns a folder whose train/ and val/ have links to three quarters and a quarter of each class of train/."""
    folder = work / "held-out"
    for source in sorted((photographs / "train").iterdir()):
        for index, file in enumerate(sorted(source.iterdir())):
            link = folder / ("train" if index % 4 else "val") / source.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file.absolute())
    return folder


def scores(target: Any, data: Path, options: dict[str, Any], seed: int) -> dict[str, float]:
    """Top-1 of kNN and of the linear probe."""
    import sslcli

    where = {"data.name": "folder", "data.root": str(data), **options}
    return {method: sslcli.evaluate(target, method, where, seed=seed).metrics["top1"] for method in ("knn", "linear")}


def run_one(run: dict[str, Any], photographs: Path, weights: Path | None, folder: Path) -> dict[str, Any]:
    """Trains and evaluates once, in this process."""
    import sslcli

    began = time.perf_counter()
    network = {name: value for name, value in run["settings"].items() if name in NETWORK}
    network["image_size"] = run["settings"]["views.size"]
    if weights is None:
        name, start = network.pop("backbone.name"), {}
        before = scores(name, photographs, network, run["seed"])
    else:
        before = scores(str(weights), photographs, network, run["seed"])
        start = {"backbone.weights": str(weights)}
    values = {**run["settings"], **start, "seed": run["seed"], "data.root": str(photographs)}
    trained = sslcli.train(overrides=values, output=folder, resume=True)
    if trained.signal is not None:
        raise SystemExit(128 + trained.signal)
    after = scores(trained, photographs, {}, run["seed"])
    return {
        "pixels": {"knn": next(line["knn_top1_pixels"] for line in trained.metrics if "knn_top1_pixels" in line)},
        "before": before,
        "after": after,
        "knn_by_epoch": {line["epoch"]: line["knn_top1"] for line in trained.metrics if "knn_top1" in line},
        "loss": [line["loss"] for line in trained.metrics if "loss" in line][-1],
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "machine": circumstances(),
    }


def key(run: dict[str, Any]) -> str:
    return json.dumps([run[name] for name in KEY], sort_keys=True)


def run_all(arguments: argparse.Namespace) -> None:
    """Makes the runs that the ledger does not have."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    photographs = held_out(arguments.photographs, work) if arguments.held_out else arguments.photographs
    part = "held-out" if arguments.held_out else "test"
    changes = {name: json.loads(value) for name, _, value in (word.partition("=") for word in arguments.set)}
    weights = arguments.weights
    origin = digest(PUBLISHED) if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    runs = [
        {
            "start": start,
            "seed": seed,
            "part": part,
            "settings": {**SETTINGS, **changes},
            "weights": origin if start == "published" else None,
            "versions": versions("ours"),
        }
        for seed in arguments.seeds
        for start in arguments.starts
    ]
    known = set(map(key, read(arguments.ledger)))
    runs = [run for run in runs if key(run) not in known]
    if weights is None and any(run["start"] == "published" for run in runs):
        weights = Path(in_a_process(__file__, "weights", "--cifar", str(arguments.cifar), "--work", str(work)))

    def make(run: dict[str, Any]) -> None:
        given = ["--weights", str(weights)] if run["start"] == "published" else []
        words = ("one", str(photographs), "--run", json.dumps(run), "--work", str(work), *given)
        found = json.loads(in_a_process(__file__, *words, OMP_NUM_THREADS="1"))
        append(arguments.ledger, {**run, **found})
        say(f"{run['start']}, seed {run['seed']}: before {found['before']}, after {found['after']}")

    arguments.ledger.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(make, runs))


def mean_and_spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation in percent."""
    found = [100 * value for value in values]
    return f"{statistics.mean(found):.1f}" + (f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")


def gain(runs: list[dict[str, Any]], score: str) -> str:
    """Mean over seeds of the gain by pre-training, in points, with its standard error."""
    found = [100 * (run["after"][score] - run["before"][score]) for run in runs]
    error = f" ± {statistics.stdev(found) / math.sqrt(len(found)):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):+.1f}{error}"


def tables(runs: list[dict[str, Any]]) -> str:
    """The table of the runs on the test images with the present settings, as Markdown."""
    runs = [run for run in runs if run["part"] == "test" and run["settings"] == SETTINGS]
    if not runs:
        return "No run with the present settings yet.\n"
    rows = [["raw pixels", mean_and_spread(run["pixels"]["knn"] for run in runs[:1]), "–"]]
    for start, name in (("scratch", "random weights"), ("published", "published-style weights")):
        if found := [run for run in runs if run["start"] == start]:
            for when, words in (("before", name), ("after", f"{name}, after pre-training")):
                rows.append(
                    [words, *(mean_and_spread(run[when][score] for run in found) for score in ("knn", "linear"))]
                )
            rows.append(["gain, with its standard error", *(gain(found, score) for score in ("knn", "linear"))])
    last, minutes = runs[-1]["machine"], statistics.median(run["minutes"] for run in runs)
    seeds = sorted({run["seed"] for run in runs})
    return "\n".join([
        f"Top-1 in percent on the test images, mean ± standard deviation over seeds {', '.join(map(str, seeds))}:\n",
        table(["", "kNN", "linear"], rows),
        f"Made by `python benchmarks/large_images.py run`, {last['time']}, {last['processor']}, torch {last['torch']}, "
        f"{minutes:.0f} minutes a run on one thread (median).\n",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | report")
    run = commands.add_parser("run", help="make the runs that the ledger does not have")
    one, made = commands.add_parser("one"), commands.add_parser("weights")
    report = commands.add_parser("report", help="the table")
    for each in (run, one):
        each.add_argument("photographs", type=Path)
        each.add_argument("--weights", type=Path, help="weights to start from, instead of those that are made")
    one.add_argument("--run", type=json.loads)
    for each in (run, one, made):
        each.add_argument("--work", type=Path, default=Path("large-images"), help="folder of the runs")
    for each in (run, made):
        each.add_argument("--cifar", type=Path, help="the folder that holds cifar-10-batches-py")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    run.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="other settings: optimizer.lr=1e-3")
    run.add_argument("--held-out", action="store_true", help="choose settings: test on a part of train/")
    run.add_argument("--jobs", type=int, default=1, help="runs at once")
    for each in (run, report):
        each.add_argument("--ledger", "--output", type=Path, default=LEDGER, help="the file with a line for each run")
    report.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            if "published" in arguments.starts and not (arguments.weights or arguments.cifar):
                run.error("the start `published` needs --cifar DIR, or weights of yours: --weights FILE")
            run_all(arguments)
        case "weights":
            print(published(arguments.cifar, arguments.work))
        case "one":
            name = f"{arguments.run['start']}-{arguments.run['seed']}-{digest(key(arguments.run))}"
            print(json.dumps(run_one(arguments.run, arguments.photographs, arguments.weights, arguments.work / name)))
        case "report":
            text = tables(read(arguments.ledger))
            print(text)
            if arguments.write_docs:
                write_part("large-images", text)


if __name__ == "__main__":
    main()
