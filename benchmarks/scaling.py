"""How training time grows with images, views, batch size, image size and workers, each with the others fixed.

    python benchmarks/scaling.py [AXIS …] [--output scaling-cpu] [--write-docs]
    python benchmarks/scaling.py --plot-only --output scaling-cpu --write-docs    plots the last result again

SimCLR with a ResNet-18 of width 8 on drawn shapes, in the loop of `ssl train`, small enough for two cores and a minute
per axis. The points of an axis alternate; a point is the median of its rounds. `workers` reads JPEG files, which it
writes to a temporary folder or finds in `--folder`, once with the steps and once without. An exponent is the slope of
the straight line through the medians in log-log scale. `--write-docs` writes the plots in docs/performance/ and the
table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from page import table, write_part
from PIL import Image
from report import RESULTS, circumstances, publish
from scaling_plots import draw

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.contracts.source import SourceBatch
from sslcli.datasets.shapes import Shapes, ShapesOptions
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import Session, build

#: Each axis changes one value of this. The recipe is the same at every size, unlike the preset's, which has blur above
#: 64 px.
BASE: dict[str, Any] = {
    "method": {"name": "simclr", "projector": {"output_dim": 128}},
    "backbone": {"name": "resnet18", "stem": "small", "width": 8},
    "data": {"name": "shapes", "count": 1024, "size": 32},
    "views": {"preset": "simclr", "strength": 0.5, "blur": 0},
    "optimizer": {"name": "sgd", "lr": 0.03, "momentum": 0.9},
    "schedule": {"name": "cosine", "warmup_epochs": 0},
    "training": {"epochs": 100000, "batch_size": 64, "compile": "none"},
    "callbacks": dict.fromkeys(("progress", "tensorboard", "knn", "online_probe", "collapse")),
}
PHOTOGRAPHS, SIDE, QUALITY = 512, 256, 90
WARM_UP = 3

Way = Callable[[], float]
"""Makes one turn; returns seconds."""


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        label: of the axis.
        values: the points.
        overrides: of `BASE`, with `{}` for the value.
        unit: what the seconds are of.
        series: the curves.
    """

    label: str
    values: tuple[int, ...]
    overrides: tuple[str, ...]
    unit: str = "step"
    series: tuple[str, ...] = ("steps",)


AXES = {
    "images": Axis("images in the dataset", (256, 512, 1024, 2048, 4096), ("data.count={}",), "epoch"),
    "views": Axis("views", (2, 3, 4, 6, 8), ()),
    "batch": Axis("batch size", (16, 32, 64, 128, 256, 512), ("training.batch_size={}",)),
    "size": Axis("side of the images and views in pixels", (16, 24, 32, 48, 64, 96, 128), ("data.size={}",)),
    "workers": Axis("worker processes", (1, 2, 3, 4), ("training.workers={}",), "step", ("steps", "batches alone")),
}


def config_at(axis: str, value: int, folder: Path | None = None) -> RunConfig:
    """Returns the configuration of a point; `folder` holds the images of `workers`."""
    document = Document(copy.deepcopy(BASE), {(): "benchmarks/scaling.py"})
    if axis == "workers":
        document.data["data"] = {"name": "images", "root": str(folder)}
        document.data["views"]["size"] = 64
    apply_overrides(document, [each.format(value) for each in AXES[axis].overrides])
    config = resolve(document)
    if axis == "views":
        views = [{**view, "count": value} for view in config.plain()["views"]]
        config = resolve(Document({**document.data, "views": views}, document.where))
    return config


def turns(session: Session, series: str, steps: int | None, seconds: float) -> Way:
    """Returns what makes a turn of one point: steps of the loop, or only their batches.

    Args:
        session: of the point.
        series: `steps` or `batches alone`.
        steps: in a turn; None: as many as take about `seconds`.
        seconds: a turn's length.

    Returns:
        a function that returns the seconds of one step, or of all of `steps` if given.
    """
    loop = Loop(session, Context(session, RunDirectory(Path(tempfile.gettempdir()))), 0)
    batches: Iterator[list[SourceBatch]] = loop.batches
    one: Callable[[], object] = loop.step if series == "steps" else lambda: next(batches)

    def spent(count: int) -> float:
        _synchronize(session.device)
        began = time.perf_counter()
        for _ in range(count):
            one()
        _synchronize(session.device)
        return time.perf_counter() - began

    # The batches that workers prepared between turns are used up before the measurement.
    ahead = session.source.ahead
    spent(WARM_UP + ahead)
    count = steps or max(2, math.ceil(seconds / (spent(2) / 2)))

    def turn() -> float:
        spent(ahead)
        return spent(count) / (1 if steps else count)

    return turn


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(axis: str, rounds: int, seconds: float, folder: Path | None) -> dict[str, Any]:
    """Measures one axis: every point in turn, `rounds` times."""
    kind = AXES[axis]
    times: dict[str, dict[int, list[float]]] = {series: {value: [] for value in kind.values} for series in kind.series}
    with ExitStack() as open_sources:
        ways: dict[tuple[str, int], Way] = {}
        for series in kind.series:
            for value in kind.values:
                session = build(config_at(axis, value, folder))
                open_sources.callback(session.source.close)
                steps = session.source.steps_per_epoch if kind.unit == "epoch" else None
                ways[series, value] = turns(session, series, steps, seconds)
        for _ in range(rounds):
            for (series, value), way in ways.items():
                times[series][value].append(way())
    return {
        "label": kind.label,
        "seconds_of": kind.unit,
        "rounds": rounds,
        "series": {name: summarize(points) for name, points in times.items()},
    }


def summarize(times: dict[int, list[float]]) -> dict[str, Any]:
    """Returns the points of a curve and its exponent; `last_exponent` is that of the last two points."""
    medians = {value: statistics.median(each) for value, each in times.items()}
    last = dict(list(medians.items())[-2:])
    return {
        "points": [
            {"value": value, "median": _rounded(medians[value]), "min": _rounded(min(each)), "max": _rounded(max(each))}
            for value, each in times.items()
        ],
        "exponent": round(exponent(medians), 3),
        "last_exponent": round(exponent(last), 3),
    }


def exponent(times: dict[int, float]) -> float:
    """Returns p of the power law time ∝ value^p that fits best in logarithms (least squares)."""
    fit = statistics.linear_regression([math.log(value) for value in times], [math.log(t) for t in times.values()])
    return fit.slope


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def write_photographs(folder: Path) -> None:
    """Writes drawn pictures as JPEG files."""
    pictures = Shapes(ShapesOptions(count=PHOTOGRAPHS, size=SIDE)).images()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:04}.jpg", quality=QUALITY)


def markdown(report: dict[str, Any]) -> str:
    """Returns the table and pictures of a report."""
    rows, pictures = [], []
    for axis, entry in report["axes"].items():
        pictures.append(f"![time against {entry['label']}](performance/scaling-{axis}.svg)")
        for curve, series in entry["series"].items():
            points = series["points"][0], series["points"][-1]
            rows.append(
                [
                    entry["label"] if len(entry["series"]) == 1 else f"{entry['label']}, {curve}",
                    " to ".join(f"{point['value']:,}" for point in points),
                    " to ".join(f"{point['median']:.3g}" for point in points) + f" s {_each(entry)}",
                    *(f"{series[name]:.2f}".replace("-", "−") for name in ("exponent", "last_exponent")),
                ]
            )
    machine = f"{report['processor']}, torch's threads: {report['cpu_threads']}, load average {report['load_average']}"
    command = f"`{' '.join(report['command'])}`"
    header = ["what grows", "from, to", "time", "exponent", "of the last two points"]
    return "\n".join(
        [
            table(header, rows),
            *pictures,
            "",
            f"Made by {command}, {report['time']}, {machine}, torch {report['torch']}.",
        ]
    )


def _each(entry: dict[str, Any]) -> str:
    return "an epoch" if entry["seconds_of"] == "epoch" else "a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"some of {', '.join(AXES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a point's turn, about")
    parser.add_argument("--folder", type=Path, help="JPEG files for `workers`; default: written to a temporary folder")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--write-docs", action="store_true", help="draw docs/performance/ and write the table")
    parser.add_argument("--plot-only", action="store_true", help="measure nothing: take what --output names")
    arguments = parser.parse_args()
    unknown = [axis for axis in arguments.axes if axis not in AXES]
    if unknown:
        parser.error(f"{unknown[0]!r} is not an axis: choose from {', '.join(AXES)}")
    if arguments.plot_only:
        if not arguments.output:
            parser.error("--plot-only needs --output: the result to draw")
        report = json.loads((RESULTS / arguments.output).with_suffix(".json").read_text(encoding="utf-8"))
    else:
        report = {**circumstances(), "base": BASE, "axes": {}}
        with tempfile.TemporaryDirectory() as made:
            for axis in arguments.axes or AXES:
                folder = arguments.folder
                if axis == "workers" and folder is None:
                    folder = Path(made)
                    write_photographs(folder)
                report["axes"][axis] = measure(axis, arguments.rounds, arguments.seconds, folder)
                print(f"{axis}: {json.dumps(report['axes'][axis]['series'])}", flush=True)
        publish(report, arguments.output)
    if arguments.write_docs:
        draw(report)
        write_part("scaling", markdown(report))


if __name__ == "__main__":
    main()
