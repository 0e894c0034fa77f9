"""Images per second of whole training steps, beside the same steps on views made before: what data and views cost.

    python benchmarks/step.py examples/configs/cifar10/simclr.yaml data.root=… [--steps 20] [--output NAME]

Both kinds of steps are timed in turns in one process, with the same session; the ratio of their medians is the figure
to quote. `end to end` draws, gathers, makes the views and steps; `ready` only steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision

from sslcli.config.resolve import load_config
from sslcli.contracts.data import SourceBatch
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import Session, build


def seconds(session: Session, work: Callable[[], None]) -> float:
    """Wall time of `work`, all of the device's part included."""
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def repeat(batch: list[SourceBatch]) -> Iterator[list[SourceBatch]]:
    while True:
        yield batch


class Ready:
    """Stands in for the ViewMaker: gives the views of one batch, made before."""

    def __init__(self, views: list[torch.Tensor]) -> None:
        self.views = views

    def draw(self, *ignored: object) -> Ready:
        return self

    def to(self, device: torch.device) -> Ready:
        return self

    def apply(self, *ignored: object, cropped: bool = False) -> list[torch.Tensor]:
        return self.views


def measure(session: Session, steps: int, turns: int) -> dict[str, list[float]]:
    """Returns seconds a step for each turn of either kind."""
    loop = Loop(session, Context(session, RunDirectory(Path(tempfile.gettempdir())), print), 0)
    maker = session.views
    batch = next(session.source.batches(0))
    first = batch[0]
    sizes = None if first.cropped else torch.tensor([first.images[0].shape[-2:]]).expand(len(first.index), 2)
    draws = maker.draw(first.epoch, first.positions, sizes).to(session.device)
    ready = Ready(
        [
            v.contiguous(memory_format=torch.channels_last)
            for v in maker.apply(first.images, draws, cropped=first.cropped)
        ]
    )
    stream, stored = loop.batches, repeat(batch)
    times: dict[str, list[float]] = {"end to end": [], "ready": []}
    for turn in range(turns + 1):
        for kind in times:
            if kind == "ready":
                session.views, loop.batches = ready, stored  # type: ignore[assignment]
            else:
                session.views, loop.batches = maker, stream
            spent = seconds(session, lambda: [loop.step() for _ in range(steps)] and None)
            if turn > 0:  # the first turn warms up
                times[kind].append(spent / steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each kind")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    arguments = parser.parse_args()
    session = build(load_config(arguments.config, arguments.overrides))
    times = measure(session, arguments.steps, arguments.turns)
    batch = session.config.training.batch_size
    rates = {kind: batch / statistics.median(values) for kind, values in times.items()}
    result = {
        "config": str(arguments.config),
        "overrides": arguments.overrides,
        "precision": session.config.training.precision,
        "device": torch.cuda.get_device_name() if session.device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "images_per_second": {kind: round(rate, 1) for kind, rate in rates.items()},
        "spread": {kind: [round(batch / max(v), 1), round(batch / min(v), 1)] for kind, v in times.items()},
        "ratio": round(rates["end to end"] / rates["ready"], 4),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        path = Path(__file__).parent / "results" / f"{arguments.output}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
