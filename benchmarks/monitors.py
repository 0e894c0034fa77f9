"""What the monitors cost: seconds that a run spends in the callbacks `knn`, `online_probe` and `logistic`, beside the
seconds that it trains.

    python benchmarks/monitors.py examples/configs/cifar10/simclr.yaml data.root=… [--epochs 2] [--output NAME]

Each monitor alone, and the two that are on by default together, in a run of its own that looks after every epoch. What
a step's hooks, a log line's and a look took is scaled to looks every 10 epochs, the default: `share` is that time over
the time of the same steps without any callback. Both are measured in one run; on a CPU as processor time, so that what
else the machine does weighs little. `start` is what a monitor takes once, before the first step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

from sslcli.config.resolve import load_config
from sslcli.plugins import load
from sslcli.training.loop import Loop
from sslcli.training.train import train

VARIANTS = (("knn",), ("online_probe",), ("logistic",), ("knn", "online_probe"))
EVERY_EPOCHS = 10
HOOKS = ("on_start", "on_step", "on_record", "on_epoch", "on_end")


class Clock:
    """Seconds of every call of what it wraps, the device's part included; of nested calls the outer one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.running = False

    def wrap(self, owner: type, method: str, name: str) -> Callable[[], None]:
        """Times a method of a class; returns what puts it back."""
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
    """Trains with these monitors alone; returns what they and the steps took."""
    switched = [f"callbacks.{name}=null" for name in ("progress", "tensorboard", "collapse", "knn", "online_probe")]
    on = [f"callbacks.{name}={{every_epochs: 1}}" for name in names]
    config = load_config(
        path, [*overrides, f"training.epochs={epochs}", "schedule.warmup_epochs=0", *switched, *on]
    )  # fmt: skip
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
        "start_seconds": round(sum(took["on_start"]), 2),
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
    shown = ["data.root=DIR/cifar10" if item.startswith("data.root=") else item for item in arguments.overrides]
    output = [f"--output {arguments.output}"] if arguments.output else []
    result = {
        "command": " ".join(
            ["python benchmarks/monitors.py", str(arguments.config), *shown, f"--epochs {arguments.epochs}", *output]
        ),
        "every_epochs": EVERY_EPOCHS,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "clock": "wall" if torch.cuda.is_available() else "processor",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "results": rows,
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        path = Path(__file__).parent / "results" / f"{arguments.output}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
