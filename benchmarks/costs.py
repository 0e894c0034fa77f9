"""Time and memory of a step of each method besides its network: ResNet-18 at 32 px, two prepared views of the
method's own recipe, its own options and optimizer.

    OMP_NUM_THREADS=1 python benchmarks/costs.py [--methods moco_v2 swav] [--batch 256] [--width 64] [--output NAME]

Each method runs in a process of its own. `cost_parts.py` describes the parts and how they are separated; times are
medians over the steps, on a CPU in processor time, which with one thread is the time of a core. Queues are full, and
nothing is frozen. With one process a gather is the identity and costs nothing: its cost with several is not measured.
`log line` is the cost of a log line's feature statistics, as a share of the steps between two lines. A step here has no
data, no views, and no sums for the log.

Memory: the peak of a step above the memory in use between two steps, and that of the backbone alone for the forward and
backward pass of the images that get a gradient, in the calls that the method makes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cost_parts import PARTS, Clock, watch
from report import circumstances, in_a_process, publish

from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.contracts.backbone import Features
from sslcli.contracts.method import Batch, Progress, View
from sslcli.evaluation.quality import effective_rank, feature_std
from sslcli.modules.queue import Queue
from sslcli.plugins import find, load
from sslcli.training.loop import clip_each
from sslcli.training.memory import PeakMemory
from sslcli.training.setup import Session, build

SIZE, LOG_EVERY = 32, 20
#: Memory that is freed goes back to the system at once, so that the resident set is what is in use.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Bench:
    """Steps of one method on prepared views."""

    def __init__(self, method: str, width: int, batch: int, precision: str) -> None:
        document = {
            "method": method,
            "backbone": {"name": "resnet18", "stem": "small", "width": width},
            "data": {"name": "shapes", "count": batch, "size": SIZE},
            "training": {"batch_size": batch, "epochs": 200, "precision": precision, "compile": "none"},
        }
        self.session: Session = build(resolve(Document(document)))
        self.method, self.optimizer = self.session.method.train(), self.session.optimizer
        self.device, info = self.session.device, self.session.info
        for queue in (module for module in self.method.modules() if isinstance(module, Queue)):
            queue.pushed.fill_(len(queue.keys))
        # Late enough that queues are filled and nothing is frozen.
        self.progress = Progress(info.total_steps // 2, info.total_steps, info.steps_per_epoch)
        schedule = {name: torch.full((), at(self.progress.step)) for name, at in self.method.schedules().items()}
        self.batch = Batch(
            [self._view(batch, spec.size) for spec in self.session.config.views for _ in range(spec.count)],
            torch.arange(batch, device=self.device) % 10,
            torch.arange(batch),
            {name: value.to(self.device) for name, value in schedule.items()},
        )
        self.clock = Clock(self.device)
        self.features: torch.Tensor | None = None

    def _view(self, count: int, size: int) -> View:
        image = torch.randn(count, 3, size, size, device=self.device)
        return View(image.contiguous(memory_format=torch.channels_last))

    def step(self) -> None:
        clock, method = self.clock, self.method
        with clock.part("loss"), self.session.autocast():
            result = method(self.batch)
        with clock.part("loss"):
            torch.autograd.backward(result.loss)
        method.after_backward(self.progress)
        clip = self.session.config.training.clip
        if clip is not None:
            parameters = [p for p in method.parameters() if p.requires_grad]
            with clock.part("clip"):
                if clip.mode == "global":
                    torch.nn.utils.clip_grad_norm_(parameters, clip.norm)
                else:
                    clip_each(parameters, clip.norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step([result.carry], self.progress)
        self.features = result.features

    def seconds(self, steps: int) -> dict[str, float]:
        """The median of each part over the steps, after a warm-up step; and their sum."""
        watch(self.method, self.optimizer, self.clock)
        found = []
        for _ in range(steps + 1):
            self.step()
            found.append(self.clock.read())
        median = {part: statistics.median(each.get(part, 0.0) for each in found[1:]) for part in PARTS}
        return {**median, "step": sum(median.values()), "log line": self._log_line() / LOG_EVERY}

    def _log_line(self) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter() if self.device.type == "cuda" else time.process_time()
            assert self.features is not None
            feature_std(self.features).item()
            effective_rank(self.features).item()
            times.append((time.perf_counter() if self.device.type == "cuda" else time.process_time()) - began)
        return statistics.median(times[1:])

    def bytes(self) -> dict[str, int]:
        """Peak memory of a step above that between steps, and the same for the backbone alone."""
        calls: list[torch.Tensor] = []

        def note(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                calls.append(arguments[0].detach())

        handle = self.method.backbone.register_forward_pre_hook(note)
        self.step()
        handle.remove()
        shapes = [tuple(images.shape) for images in calls]
        calls.clear()
        whole = self._peak(self.step)
        images = [self._view(shape[0], shape[-1]).image for shape in shapes]
        return {"method": whole, "network": self._peak(lambda: self._alone(images))}

    def _alone(self, images: list[torch.Tensor]) -> None:
        with self.session.autocast():
            outputs: list[Features] = [self.method.backbone(x) for x in images]
            loss = torch.stack([output.pooled.float().sum() for output in outputs]).sum()
        torch.autograd.backward(loss)
        self.optimizer.zero_grad(set_to_none=True)

    def _peak(self, work: Callable[[], None]) -> int:
        work()
        peak = PeakMemory(self.device)
        before = torch.cuda.memory_allocated() if self.device.type == "cuda" else peak.bytes()
        work()
        return peak.bytes() - before


def one(what: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one method in a fresh process."""
    words = [f"--{name}={getattr(arguments, name)}" for name in ("width", "batch", "steps", "precision")]
    environment = MALLOC if what == "memory" else {}
    result: dict[str, Any] = json.loads(
        in_a_process(__file__, f"--one={what}", "--methods", method, *words, **environment)
    )
    return result


def row(method: str, seconds: dict[str, float], memory: dict[str, int]) -> str:
    """A line of the table: milliseconds of a step, each part's share, memory in MiB."""
    step = seconds["step"]
    shares = (f"{100 * seconds[part] / step:10.1f}" for part in (*PARTS, "log line"))
    sizes = (f"{memory[name] / 2**20:9.0f}" for name in ("method", "network"))
    return f"{method:13}{1e3 * step:9.0f}" + "".join((*shares, *sizes, f"{memory['method'] / memory['network']:7.2f}"))


def on_resnets() -> list[str]:
    """The built-in methods that work with the ResNet measured here, and nothing beside it."""
    names = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
    return [name for name in names if not {"ViT", "teacher"} & {*load("methods", name).needs}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="default: all that are built in")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    parser.add_argument("--one", choices=["time", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        bench = Bench(arguments.methods[0], arguments.width, arguments.batch, arguments.precision)
        settings = {"precision": bench.session.config.training.precision, "views": len(bench.batch.views)}
        print(json.dumps((bench.seconds(arguments.steps) if arguments.one == "time" else bench.bytes()) | settings))
        return
    methods = arguments.methods or on_resnets()
    print(f"{'':13}{'step ms':>9}" + "".join(f"{name:>10}" for name in (*PARTS, "log line")), end="")
    print(f"{'MiB':>9}{'backbone':>9}{'ratio':>7}   (parts in % of the step)")
    rows = {}
    for method in methods:
        seconds, memory = one("time", method, arguments), one("memory", method, arguments)
        print(row(method, seconds, memory), flush=True)
        rows[method] = {"seconds": seconds, "bytes": memory}
    if arguments.output:
        publish({**circumstances(), "methods": rows}, arguments.output)


if __name__ == "__main__":
    main()
