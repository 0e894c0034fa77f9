"""Every method on one small real task: part of CIFAR-10, a narrow ResNet-18, the same number of images seen.

    python benchmarks/methods.py --root DIR/cifar10 [--methods simclr simsiam byol] [--seeds 0 1 2] [--output NAME]

For each method and seed: kNN top-1 (k 20, temperature 0.07, 2,000 test images among the training images) of the
untrained and of the trained backbone, source images per second, and how far the features spread. Settings are made for
so short a run and stand in the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

import sslcli
from sslcli.runs.directory import read_metrics

CONFIGS = Path(__file__).parents[1] / "examples" / "configs" / "cifar10"
COMMON: dict[str, Any] = {
    "backbone.width": 8,
    "data.limit": 5000,
    "training.epochs": 5,
    "training.batch_size": 128,
    "schedule.warmup_epochs": 1,
    "checkpoints.every_epochs": None,
    "callbacks": {
        "tensorboard": None,
        "progress": None,
        "knn": {"every_epochs": 1000, "limit_train": None, "limit_eval": 2000, "pixels": True},
    },
}
#: What so short a run needs: a learning rate that moves in 200 steps, and heads no wider than the features are worth.
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {"method.temperature": 0.2, "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-4}},
    "simsiam": {
        "method.projector.hidden_dim": 512,
        "method.projector.output_dim": 512,
        "method.predictor.hidden_dim": 128,
        "optimizer": {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4},
    },
    "byol": {
        "method.projector.hidden_dim": 512,
        "method.predictor.hidden_dim": 512,
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4},
    },
}


def run(method: str, seed: int, root: Path) -> dict[str, float]:
    """Trains once; returns what the log says at its beginning and end."""
    values = {**COMMON, **SETTINGS[method], "seed": seed, "data.root": str(root)}
    with tempfile.TemporaryDirectory() as folder:
        trained = sslcli.train(CONFIGS / f"{method}.yaml", values, output=Path(folder) / "run")
        if trained.signal is not None:  # an interrupted run is no result
            raise SystemExit(128 + trained.signal)
        lines = read_metrics(trained.directory / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    top1 = [line["knn_top1"] for line in lines if "knn_top1" in line]
    return {
        "knn_pixels": lines[0]["knn_top1_pixels"],
        "knn_before": top1[0],
        "knn_after": top1[-1],
        "images_per_second": statistics.median(line["images_per_second"] for line in steps),
        "feature_std": steps[-1]["feature_std"],
        "feature_rank": steps[-1]["feature_rank"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in arguments.methods}
    for seed in arguments.seeds:  # all methods of a seed one after the other, so that a slow hour harms all alike
        for method in arguments.methods:
            rows[method].append(run(method, seed, arguments.root))
            print(method, seed, rows[method][-1], flush=True)
    table = {
        method: {name: [round(row[name], 4) for row in found] for name in found[0]} for method, found in rows.items()
    }
    result = {
        "task": {**COMMON, "data": "cifar10"},
        "settings": SETTINGS,
        "seeds": arguments.seeds,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "results": table,
    }
    print(json.dumps(table, indent=2))
    if arguments.output:
        path = Path(__file__).parent / "results" / f"{arguments.output}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
