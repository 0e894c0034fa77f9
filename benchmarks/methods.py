"""Every method on one small real task: part of CIFAR-10, a narrow ResNet-18, the same number of images seen.

    python benchmarks/methods.py --root DIR/cifar10 [--methods simclr byol] [--seeds 0 1 2] [--jobs 2] [--output NAME]
    python benchmarks/methods.py --root DIR/cifar10 --cost [--rounds 3] --output NAME

For each method and seed, in a process of its own with one thread: kNN top-1 (k 20, temperature 0.07, 2,000 test images
against the training images) of the untrained and of the trained backbone, and the spread of the features at the end.
--cost measures time and peak memory instead, one process at a time on an otherwise idle machine, every method once per
round. The settings suit so short a run and are part of the result; all others are those of
`examples/configs/cifar10/METHOD.yaml`. With --output, runs that are in the file with the same settings are kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from report import RESULTS, circumstances, in_a_process

CONFIGS = Path(__file__).parents[1] / "examples" / "configs" / "cifar10"
COMMON: dict[str, Any] = {
    "backbone.width": 8,
    "backbone.zero_init_residual": True,
    "data.limit": 5000,
    "training.epochs": 6,
    "training.batch_size": 64,
    "training.precision": "fp32",
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
    "checkpoints.every_epochs": None,
    "callbacks": {
        "tensorboard": None,
        "progress": None,
        "knn": {"every_epochs": 1000, "limit_train": None, "limit_eval": 2000, "pixels": True},
    },
}
ADAMW = {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-4}
NARROW = {"method.projector.hidden_dim": 512, "method.projector.output_dim": 128}
QUEUE = {"method.queue_size": 2048, "method.symmetric": False, "method.momentum": 0.99}
#: For so short a run: learning rates that have an effect in a few hundred steps, momentum encoders that follow within
#: them, and heads and queues that suit 5,000 images.
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {"method.temperature": 0.2, "optimizer": ADAMW},
    "simclr_v2": {"method.temperature": 0.2, "method.projector.hidden_dim": 512, "optimizer": ADAMW},
    "supcon": {**NARROW, "method.temperature": 0.1, "optimizer": ADAMW},
    "simsiam": {
        "method.projector.hidden_dim": 512,
        "method.projector.output_dim": 512,
        "method.predictor.hidden_dim": 128,
        "optimizer": {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4},
    },
    "nnclr": {
        **NARROW,
        "method.predictor.hidden_dim": 512,
        "method.queue_size": 2048,
        "optimizer": ADAMW,
    },
    "byol": {
        "method.projector.hidden_dim": 512,
        "method.predictor.hidden_dim": 512,
        "optimizer": ADAMW,
    },
    "moco_v1": {**QUEUE, "method.temperature": 0.2, "optimizer": ADAMW},
    "moco_v2": {**QUEUE, **NARROW, "optimizer": ADAMW},
    "eqco": {**QUEUE, **NARROW, "method.queue_size": 256, "method.alpha": 2048, "optimizer": ADAMW},
    "moco": {
        **NARROW,
        "method.queue_size": 2048,
        "method.momentum": 0.99,
        "method.final_momentum": None,
        "method.both_views_as_queries": True,
        "optimizer": ADAMW,
    },
    "moco_v3": {**NARROW, "method.predictor.hidden_dim": 512, "optimizer": ADAMW},
    # Prediction and assignment stay uniform on so few images unless the assignments are sharpened.
    "swav": {
        **NARROW,
        "method.prototypes": 100,
        "method.epsilon": 0.02,
        "method.frozen_epochs": 0.25,
        "method.queue_size": 0,
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4},
    },
    # Without batch norm in the head, student and teacher end in the uniform distribution within this run.
    "dino": {
        "method.head.hidden_dim": 512,
        "method.head.bottleneck_dim": 128,
        "method.head.prototypes": 256,
        "method.head.norm": "batch",
        "method.teacher_temperature": 0.04,
        "method.teacher_temperature_start": 0.04,
        "method.momentum": 0.99,
        "method.freeze_last_layer_epochs": 0.25,
        "optimizer": ADAMW,
    },
    "lejepa": {"method.projector.hidden_dim": 512, "optimizer": ADAMW},
    "barlow_twins": {**NARROW, "method.projector.output_dim": 512, "optimizer": ADAMW},
    "vicreg": {**NARROW, "method.projector.output_dim": 512, "optimizer": ADAMW},
    "densecl": {**NARROW, "method.queue_size": 2048, "method.momentum": 0.99, "optimizer": ADAMW},
    "distillation": {"method.teacher_size": None, "optimizer": ADAMW},
}
#: The teacher of `distillation`: SimCLR's network after as many steps on the same images, at twice the width.
TEACHER: dict[str, Any] = {**SETTINGS["simclr"], "backbone.width": 16}


def train(method: str, root: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains once, in this process; returns the log."""
    import sslcli

    with tempfile.TemporaryDirectory() as folder:
        config = CONFIGS / f"{method}.yaml"
        values = {"data.root": str(root), **values}
        if method == "distillation":
            teacher = Path(folder) / "teacher"
            sslcli.train(CONFIGS / "simclr.yaml", {**COMMON, **TEACHER, **values}, output=teacher)
            values["method.teacher"] = str(teacher)
        values = {**COMMON, **SETTINGS[method], **values}
        trained = sslcli.train(config, values, output=Path(folder) / "run")
        if trained.signal is not None:  # an interrupted run is not a result
            raise SystemExit(128 + trained.signal)
        return trained.metrics


def learn(method: str, root: Path, seed: int) -> dict[str, float]:
    """The log's values at the start and the end of a run."""
    lines = train(method, root, {"seed": seed})
    steps = [line for line in lines if "loss" in line]
    top1 = [line["knn_top1"] for line in lines if "knn_top1" in line]
    return {
        "knn_pixels": lines[0]["knn_top1_pixels"],
        "knn_before": top1[0],
        "knn_after": top1[-1],
        "feature_std": steps[-1]["feature_std"],
        "feature_rank": steps[-1]["feature_rank"],
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
    }


def cost(method: str, root: Path, seed: int) -> dict[str, float]:
    """Source images per second (median of the log lines) and the process's peak memory, over 30 steps."""
    few = {"training.max_steps": 30, "training.log_every": 5, "callbacks.knn": None, "callbacks.online_probe": None}
    lines = train(method, root, {**few, "seed": seed})
    return {
        "images_per_second": statistics.median(line["images_per_second"] for line in lines[1:]),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def load(path: Path | None) -> dict[str, dict[str, Any]]:
    """The runs of an earlier result with the present settings, by method and seed."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["task"] != {**COMMON, "data": "cifar10"}:
        return {}
    return {name: entry for name, entry in found["methods"].items() if entry["settings"] == SETTINGS.get(name)}


def summary(rows: dict[str, dict[str, float]]) -> dict[str, str]:
    """Mean ± standard deviation over the runs."""
    columns = {name: [row[name] for row in rows.values()] for name in next(iter(rows.values()))}
    spread = {name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()}
    return {name: f"{statistics.mean(values):.4g} ± {spread[name]:.2g}" for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--cost", action="store_true", help="measure time and memory, not learning")
    parser.add_argument("--rounds", type=int, default=3, help="of --cost")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--one", choices=["learn", "cost"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        work_on = {"learn": learn, "cost": cost}[arguments.one]
        print(json.dumps(work_on(arguments.methods[0], arguments.root, arguments.seeds[0])))
        return
    path = RESULTS / f"{arguments.output}.json" if arguments.output else None
    methods = load(path)
    kind, runs = ("cost", range(arguments.rounds)) if arguments.cost else ("learn", arguments.seeds)

    def work(job: tuple[int, str]) -> None:
        number, method = job
        words = ("--root", str(arguments.root), "--methods", method, "--seeds", str(number), "--one", kind)
        row = json.loads(in_a_process(__file__, *words, OMP_NUM_THREADS="1"))
        print(method, number, row, flush=True)
        entry = methods.setdefault(method, {"settings": SETTINGS[method]})
        entry.setdefault(kind, {})[str(number)] = row
        if path is not None:
            report = {
                "task": {**COMMON, "data": "cifar10"},
                **circumstances(),
                "methods": dict(sorted(methods.items())),
            }
            path.write_text(json.dumps(report, indent=2) + "\n")

    # All methods of a seed or round before the next, so that a slow hour affects all of them.
    jobs = [(number, method) for number in runs for method in arguments.methods]
    jobs = [(number, method) for number, method in jobs if str(number) not in methods.get(method, {}).get(kind, {})]
    with ThreadPoolExecutor(1 if arguments.cost else arguments.jobs) as pool:
        list(pool.map(work, jobs))
    for name, entry in sorted(methods.items()):
        print(name, summary(entry[kind]))


if __name__ == "__main__":
    main()
