"""SimCLR on all of CIFAR-10 in our tool and in lightly: accuracy against minutes of training.

    python benchmarks/curve.py run --root DIR/cifar10 [--tools ours lightly] [--epochs 20] [--seed 0]
    python benchmarks/curve.py run --root DIR/cifar10 --tools ours --held-out 5000 --set optimizer.lr=0.3
    python benchmarks/curve.py plot

A ResNet-18 of width 16 with the small stem, trained by each tool as it is used without options: ours by `ssl train`, in
the precision and compiled as `auto` resolves on this machine, lightly as in `parity_lightly.py`. Method, views,
optimizer, schedule and batch are the same (`SETTINGS`). Each run is a process of its own with all cores, and a line
that is added to the ledger; backbones are kept as they are every few epochs, and evaluated after the run, so that the
minutes are those of training alone: by kNN and, at the end, by a linear probe, fitted to the training images, on the
test images.

--held-out trains without some of the training images and evaluates on those: to choose settings, which --set changes
(those of `CHANGEABLE`, which both tools read). `plot` draws the newest run of each tool with the present settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.lines import append, read
from page import PAGE
from parity import TOOLS, versions
from parity_settings import BILINEAR, COMMON, CONFIGS, PLAIN
from report import RESULTS, circumstances, in_a_process, is_installed, say

CONFIG = CONFIGS / "simclr.yaml"
LEDGER = RESULTS / "curve.jsonl"
PLOT = PAGE.parent / "_static" / "curve.svg"
#: What two runs that are compared have in common, besides their settings.
SAME = ("seed", "processor", "cpu_threads", "torch")
#: Images of CIFAR-10 to train on.
IMAGES = 50_000
#: Epochs from one evaluated backbone to the next.
EVERY = 2
#: What is set above the example's config, for twenty epochs instead of 200.
SETTINGS: dict[str, Any] = {
    **COMMON,
    "training.batch_size": 256,
    "method": {"name": "simclr", "temperature": 0.5},
    "views": {"preset": "simclr", **BILINEAR},
    "optimizer": {"name": "sgd", "lr": 0.12, "momentum": 0.9, "weight_decay": 5e-4, **PLAIN},
    "schedule": {"name": "cosine", "warmup": "linspace", "warmup_epochs": 1, "warmup_start_lr": None},
}
#: What may be set otherwise: of the rest, lightly's schedule and optimizer have their own.
CHANGEABLE = ("optimizer.lr", "optimizer.weight_decay", "method.temperature", "training.batch_size", "views.crop_scale")


def overrides(run: dict[str, Any], root: Path) -> dict[str, Any]:
    """Returns what is set above the example's config, by dotted key."""
    steps = (IMAGES - run["held_out"]) // (SETTINGS | run["changed"])["training.batch_size"]
    return {
        **SETTINGS,
        "schedule.warmup_start": 1 / steps,  # lightly's first step already has a share of the learning rate
        "training.epochs": run["epochs"],
        **run["changed"],
        "data": {"name": "cifar10", "root": str(root), "limit": IMAGES - run["held_out"]},
        "seed": run["seed"],
    }


def digest(epochs: int) -> str:
    """Returns what identifies the settings of a run on all images."""
    return hashlib.sha256(
        json.dumps([CONFIG.read_text(), SETTINGS, epochs, EVERY], sort_keys=True).encode()
    ).hexdigest()[:16]


class Backbones:
    """Keeps what is evaluated after the run, and when it was there; a callback of ours."""

    def __init__(self, folder: Path, save: Callable[[Path, Any], None]) -> None:
        self.folder, self.save = folder, save
        self.began, self.aside = time.perf_counter(), 0.0
        self.minutes: dict[int, float] = {}

    def keep(self, epoch: int, backbone: Any) -> None:
        """Saves the backbone; the time that it takes does not count."""
        now = time.perf_counter()
        self.minutes[epoch] = (now - self.began - self.aside) / 60
        self.save(self.folder / f"{epoch}.safetensors", backbone)
        self.aside += time.perf_counter() - now

    def on_epoch(self, context: Any) -> None:
        epoch = round(context.progress.epoch)
        if epoch % EVERY == 0 or context.progress.step == context.last_step:
            self.keep(epoch, context.encoder())


def train(run: dict[str, Any], root: Path, folder: Path) -> dict[int, float]:
    """Trains, and writes EPOCH.safetensors for some of the epochs; returns the minutes until then, by epoch."""
    import parity_lightly
    import parity_lightly_views
    import torch

    import sslcli
    from sslcli.config.merge import as_arguments
    from sslcli.config.resolve import load_config
    from sslcli.contracts.method import Progress
    from sslcli.runs.backbone_file import save_backbone
    from sslcli.training.setup import build

    values = overrides(run, root)
    config = load_config(CONFIG, as_arguments(values))
    session = build(config, compiled=False)
    info = session.info
    card = session.card(Progress(0, info.total_steps, info.steps_per_epoch))
    kept = Backbones(folder, lambda path, backbone: save_backbone(path, backbone, card))
    kept.keep(0, session.method.encoder())
    if run["tool"] == "ours":
        trained = sslcli.train(CONFIG, values, callbacks=[kept, values.pop("callbacks")], output=folder / "run")
        if trained.signal is not None:  # an interrupted run is not a result
            raise SystemExit(128 + trained.signal)
        return kept.minutes
    torch.manual_seed(run["seed"])
    backbone = config.backbone.cls.build(config.backbone.options, 3, config.views[0].size)
    method = parity_lightly.SimCLR(backbone, config.method.options, info.total_steps, info.steps_per_epoch)
    optimizer, schedule = parity_lightly.optimizer_and_schedule(method, config)
    method.train()
    batches = parity_lightly_views.batches(config, root, info.data.mean, info.data.std)
    for number, views in enumerate(batches, start=1):
        parity_lightly.step(method, optimizer, schedule, views, number - 1)
        epoch, rest = divmod(number, info.steps_per_epoch)
        if rest == 0 and (epoch % EVERY == 0 or number == info.total_steps):
            kept.keep(epoch, method.encoder())
    return kept.minutes


def evaluate(run: dict[str, Any], root: Path, folder: Path, epochs: list[int]) -> dict[str, Any]:
    """Returns top-1 as fractions: by kNN after each of the epochs, and by a linear probe after the last one."""
    import torch
    from torchvision.datasets import CIFAR10

    import sslcli
    from sslcli.data.subset import stratified_choice

    data = CIFAR10(root)
    parts: dict[str, Any] = {"train": data, "eval": CIFAR10(root, train=False)}
    if run["held_out"]:
        chosen = stratified_choice(torch.tensor(data.targets), IMAGES - run["held_out"])
        held_out = torch.ones(IMAGES, dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        parts = {
            name: torch.utils.data.Subset(data, indices.tolist())
            for name, indices in {"train": chosen, "eval": held_out}.items()
        }

    def top1(epoch: int, evaluator: str) -> float:
        found = sslcli.evaluate(folder / f"{epoch}.safetensors", evaluator, **parts)
        return float(found.metrics["top1"])

    return {"knn": {epoch: top1(epoch, "knn") for epoch in epochs}, "linear": top1(epochs[-1], "linear")}


def run_one(root: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Trains and evaluates, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        minutes = train(run, root, Path(folder))
        scores = evaluate(run, root, Path(folder), list(minutes))
    return {"minutes": minutes, **scores, "machine": circumstances("lightly")}


def plot(runs: dict[str, dict[str, Any]], path: Path = PLOT) -> None:
    """Draws kNN top-1 against the minutes of training.

    Args:
        runs: a line of the ledger for each tool.
        path: the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scaling_plots import COLORS, INK, PALE

    # A fixed salt and no date: the same figures make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "curve", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6, 3.2), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for (tool, run), color in zip(runs.items(), COLORS, strict=False):
            minutes, accuracy = list(run["minutes"].values()), [100 * value for value in run["knn"].values()]
            name = "ssl" if tool == "ours" else tool
            axes.plot(minutes, accuracy, "o-", color=color, markersize=3.5, linewidth=1.2)
            axes.annotate(
                f"{name}: {accuracy[-1]:.1f}% after {minutes[-1]:.0f} min", (minutes[-1], accuracy[-1]),
                (0, -14), textcoords="offset points", ha="right", color=color,
            )  # fmt: skip
        axes.set_xlabel("minutes of training", color=INK)
        axes.set_ylabel("kNN top-1 on the test images, %", color=INK)
        axes.set_xlim(left=0)
        axes.grid(True, color=PALE, linewidth=0.6)
        axes.tick_params(colors=INK, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | plot")
    run, one = commands.add_parser("run", help="train and evaluate"), commands.add_parser("one")
    for each in (run, one):
        each.add_argument("--root", type=Path, required=True, help="the folder that holds cifar-10-batches-py")
    one.add_argument("--run", type=json.loads, required=True)
    run.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--held-out", type=int, default=0, help="training images that are evaluated instead of the test images"
    )
    run.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="other settings than those of the file")
    drawn = commands.add_parser("plot", help="draw the newest run of each tool")
    for each in (run, drawn):
        each.add_argument("--epochs", type=int, default=20)
        each.add_argument("--ledger", type=Path, default=LEDGER, help="the file with a line for each run")
    drawn.add_argument("--output", type=Path, default=PLOT)
    arguments = parser.parse_args()
    if arguments.command == "one":
        print(json.dumps(run_one(arguments.root, arguments.run)))
        return
    if arguments.command == "plot":
        present = [
            line
            for line in read(arguments.ledger)
            if line["settings"] == digest(arguments.epochs) and not line["changed"] and not line["held_out"]
        ]
        newest = {line["tool"]: line for line in present}
        if lacking := [tool for tool in TOOLS if tool not in newest]:
            parser.error(f"{arguments.ledger}: no run of {' and '.join(lacking)} with the present settings: see `run`")
        first, second = ([{**newest[tool]["machine"], **newest[tool]}[name] for name in SAME] for tool in TOOLS)
        if first != second:
            parser.error(f"{arguments.ledger}: the newest runs differ in {', '.join(SAME)}: {first} and {second}")
        plot({tool: newest[tool] for tool in TOOLS}, arguments.output)
        return
    from sslcli.data.processes import usable_cores

    if not is_installed("lightly"):
        parser.error("lightly is not installed: pip install 'sslcli[benchmark]'")
    if not (arguments.root / "cifar-10-batches-py").is_dir():
        parser.error(f"--root: no cifar-10-batches-py in {arguments.root}; give the folder that holds it")
    changed = {}
    for word in arguments.set:
        name, equals, value = word.partition("=")
        if not equals or name not in CHANGEABLE:
            parser.error(f"--set: {word}: should be KEY=JSON, of {', '.join(CHANGEABLE)}")
        changed[name] = json.loads(value)
    arguments.ledger.parent.mkdir(parents=True, exist_ok=True)
    for tool in arguments.tools:
        line = {
            "tool": tool, "seed": arguments.seed, "epochs": arguments.epochs, "held_out": arguments.held_out,
            "changed": changed, "settings": digest(arguments.epochs), "versions": versions(tool),
        }  # fmt: skip
        # All cores, whatever the shell says; and huge pages where `ssl` has them.
        environment = {"OMP_NUM_THREADS": str(usable_cores()), "THP_MEM_ALLOC_ENABLE": str(int(tool == "ours"))}
        words = ("one", "--root", str(arguments.root), "--run", json.dumps(line))
        found = json.loads(in_a_process(__file__, *words, **environment))
        append(arguments.ledger, {**line, **found})
        last = list(found["knn"].values())[-1]
        minutes = list(found["minutes"].values())[-1]
        say(f"{tool} {changed or ''}: kNN {last:.4f}, linear {found['linear']:.4f}, {minutes:.1f} min")


if __name__ == "__main__":
    main()
