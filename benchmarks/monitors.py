"""The cost of the monitors: seconds that a run spends in the callbacks `knn`, `online_probe` and `logistic`, compared
with the seconds that it trains.

    python benchmarks/monitors.py examples/configs/cifar10/simclr.yaml data.root=… [--epochs 2] [--output NAME]

Each monitor alone, and the two that are on by default together, in a run of its own with an evaluation after every
epoch. The times of the hooks for steps, log lines and evaluations are scaled to an evaluation every 10 epochs, the
default: `share` is that time over the time of the same steps without callbacks. Both are measured in one run; on a CPU
as processor time, which other load on the machine affects little. `start` is spent once, before and after the first
step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import circumstances, publish

from sslcli.config.resolve import load_config
from sslcli.plugins import load
from sslcli.training.loop import Loop
from sslcli.training.train import train

VARIANTS = (("knn",), ("online_probe",), ("logistic",), ("knn", "online_probe"))
EVERY_EPOCHS = 10
HOOKS = ("on_start", "on_first_step", "on_step", "on_record", "on_epoch", "on_end")


class Clock:
    """Seconds of every call of a wrapped method, including the device's work; of nested calls the outer one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.running = False

    def wrap(self, owner: type, method: str, name: str) -> Callable[[], None]:
        """Measures a method of a class; returns a function that restores it."""
        original = getattr(owner, method)

        def timed(*arguments: Any) -> Any:
            if self.running:
                return original(*arguments)
            self.running = True
            began = self._now()
            try:
                return original(*arguments)
            finally:
                self.seconds[name].append(self._now() - began)
                self.running = False

        setattr(owner, method, timed)
        return lambda: setattr(owner, method, original)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def measure(path: Path, overrides: list[str], names: tuple[str, ...], epochs: int) -> dict[str, Any]:
    """Trains with only these monitors; returns the times of the monitors and the steps."""
    switched = [f"callbacks.{name}=null" for name in ("progress", "tensorboard", "collapse", "knn", "online_probe")]
    on = [f"callbacks.{name}={{every_epochs: 1}}" for name in names]
    config = load_config(path, [*overrides, f"training.epochs={epochs}", "schedule.warmup_epochs=0", *switched, *on])
    clock = Clock()
    undo = [clock.wrap(Loop, "step", "step")]
    for name in names:
        cls = load("callbacks", name)
        undo += [clock.wrap(cls, hook, hook) for hook in HOOKS]
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = train(config, Path(folder) / "run", tell=print)
    finally:
        for put_back in undo:
            put_back()
    took, monitors = clock.seconds, len(names)
    steps_per_epoch = result.total_steps // epochs
    period = steps_per_epoch * EVERY_EPOCHS
    step = statistics.median(took["step"])
    hook = monitors * statistics.median(took["on_step"])
    looks = [sum(took["on_epoch"][i * monitors : (i + 1) * monitors]) for i in range(epochs)]
    line = sum(took["on_record"]) / max(1, result.total_steps // config.training.log_every)
    look = statistics.median(looks)
    lines = period / config.training.log_every
    return {
        "monitors": list(names),
        "step_seconds": round(step, 4),
        "hook_seconds_per_step": round(hook, 6),
        "seconds_per_log_line": round(line, 6),
        "seconds_per_look": round(look, 2),
        "start_seconds": round(sum(took["on_start"] + took["on_first_step"]), 2),
        "share_of_steps": round(hook / step, 5),
        "share": round((period * hook + lines * line + look) / (period * step), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    arguments = parser.parse_args()
    rows = [measure(arguments.config, arguments.overrides, names, arguments.epochs) for names in VARIANTS]
    clock = "wall" if torch.cuda.is_available() else "processor"
    report = {"every_epochs": EVERY_EPOCHS, "clock": clock, **circumstances(), "results": rows}
    publish(report, arguments.output)


if __name__ == "__main__":
    main()
