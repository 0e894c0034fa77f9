"""What is run on a pretended CUDA device: real runs, evaluations and exports, in a process of their own.

`python cases.py OUT NAME…` runs the cases with these names, and prints one JSON object for each: what the ledger holds,
or the error. `launch.run` starts it, and prepares the process. Names that are no cases are run as Python.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pretended import runtime
from pretended.ledger import ledger

import sslcli.phases
from sslcli.config.resolve import RunConfig
from sslcli.training import context, loop
from sslcli.training import train as training

#: Of the last step that was made: kernels by phase, and multi-tensor calls that ran tensor by tensor.
LAST: dict[str, Any] = {}
#: What runs have said; nothing is asked for their progress lines if nobody listens.
SAID: list[str] = []

MONITORS = ("callbacks.knn={every_epochs: 1, limit_train: 32, limit_eval: 16}",
            "callbacks.logistic={limit: 16, iterations: 3}", "callbacks.collapse={}",
            "callbacks.progress={every_seconds: 0}",
            "callbacks.online_probe={every_epochs: 1, limit_eval: 16}")  # fmt: skip
#: Three epochs of four steps, with log lines, monitors and checkpoints after each.
STEPS = ("data={name: shapes, count: 32, size: 16}", "training.batch_size=8", "training.epochs=3",
         "training.log_every=4", "training.device=cuda", "checkpoints.every_epochs=1",
         "schedule={name: cosine, warmup_epochs: 1}")  # fmt: skip


def config(method: str, *overrides: str) -> RunConfig:
    """A small run of a method with its own optimizer and every monitor on."""
    from run_helpers import method_config

    return method_config(method, *STEPS, *MONITORS, *overrides, own_optimizer=True)


def trained(folder: Path, *overrides: str, method: str = "simclr", resumes: bool = False) -> None:
    """Trains two epochs, and where a run `resumes`, goes on with a third."""
    for more in (("training.max_steps=8",), ())[: 1 + resumes]:
        told = config(method, "training.precision=bf16", *overrides, *more)
        training.train(told, folder, resume=not more, tell=SAID.append)


def watch() -> None:
    """Names in the ledger what is going on: a step, a log line, monitors, saving; the first step apart."""

    def inside(owner: Any, name: str, section: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with ledger.during(section):
                return original(*args, **kwargs)

        setattr(owner, name, watched)

    step = loop.Loop.step

    def watched_step(self: loop.Loop) -> None:
        first = not getattr(self, "stepped", False)
        self.stepped = True  # type: ignore[attr-defined]
        before, slow = Counter(ledger.kernels), Counter(ledger.slow)
        LAST["section"] = "first step" if first else "step"
        with ledger.during(LAST["section"]):
            step(self)
        LAST["last_kernels"] = {phase: count for (_, phase), count in (ledger.kernels - before).items()}
        LAST["last_slow"] = [f"{operation} at {place}" for _, operation, place in ledger.slow - slow]

    loop.Loop.step = watched_step  # type: ignore[method-assign]
    after_step = context.Context.step

    def watched_callbacks(self: context.Context) -> None:
        with ledger.during(LAST["section"]):
            after_step(self)

    context.Context.step = watched_callbacks  # type: ignore[method-assign]
    inside(context.Context, "epoch", "monitors")
    inside(context.Context, "start", "start")
    inside(context.Context, "log_line", "log line")
    inside(loop.Loop, "record", "log line")
    inside(training, "_save", "save")
    sslcli.phases._running = Phases()


class Phases(sslcli.phases.Clock):
    """Tells the ledger which phase of a step it is."""

    def __init__(self) -> None:
        super().__init__()

    def _mark(self) -> None:
        ledger.phase = self._open[-1]


CASES: dict[str, Callable[[Path], Any]] = {}


def main(out: Path, names: list[str]) -> None:
    runtime.install()
    watch()
    for module in ("matrix", "lowering"):  # which put every case into CASES
        importlib.import_module(module)
    for name in names:
        ledger.clear()
        LAST.clear()
        found: dict[str, Any] = {"case": name}
        folder = out / re.sub(r"\W+", "-", name)
        try:
            found |= (CASES[name](folder) if name in CASES else snippet(name)) or {}
        except BaseException as error:
            found["error"] = "".join(traceback.format_exception(error))[-4000:]
        print(json.dumps({**found, **LAST, **ledger.plain()}), flush=True)


def snippet(code: str) -> None:
    """Runs some lines, with `x` (4, 3) and a `mask` on the device, and `cpu` (4, 3) not."""
    cpu = torch.arange(12.0).reshape(4, 3)
    names = {"torch": torch, "cpu": cpu, "x": cpu.pin_memory().to("cuda", non_blocking=True)}
    names["mask"] = names["x"][:, 0] > 3
    ledger.clear()
    exec(code, names)


if __name__ == "__main__":
    sys.modules["cases"] = sys.modules["__main__"]
    main(Path(sys.argv[1]), sys.argv[2:])
