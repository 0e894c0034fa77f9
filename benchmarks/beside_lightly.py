"""Images per second of whole SimCLR training steps on CIFAR-10: ours and lightly's, alternating on the same cores.

    python benchmarks/beside_lightly.py DATA_ROOT [--width 16] [--batch 256] [--steps 20] [--output NAME]

Needs lightly (`pip install 'sslcli[benchmark]'`). Both train the same backbone (our ResNet-18 with the small stem) with
SGD, a projector of the same size and views of the same recipe, which is also lightly's own for CIFAR-10; the pipeline
and the loop differ. lightly's are those of its examples: `LightlyDataset`, `SimCLRTransform`, torch's loader with
worker processes, one forward pass per view. Ours are those of `ssl train` with `examples/configs/cifar10/simclr.yaml`,
including log lines, with each `auto` as for its 200 epochs. Neither has monitors or checkpoints.

Each round runs every configuration in a process of its own, one after the other; compiling and warm-up steps are not
measured. Ratios are of the same round. `defaults` compares both tools without options (lightly: eager, fp32,
contiguous; ours: `made` has each resolved `auto`); in the others precision, memory format, an eager backbone and huge
pages are equal, so that only pipeline and loop differ.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from others import lightly_views
from report import circumstances, is_installed, publish, say, summary
from torch import Tensor, nn
from views import MEAN, STD, our_views

from sslcli.config.resolve import RunConfig, load_config
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "cifar10" / "simclr.yaml"


@dataclass(frozen=True)
class Way:
    """One tool with its settings.

    Attributes:
        tool: `ours` or `lightly`.
        options: overrides of our config, and for lightly precision and format.
        huge_pages: torch puts huge pages behind large tensors, as `ssl` asks it to.
    """

    tool: str
    options: tuple[str, ...] = ()
    huge_pages: bool = False


#: With equal settings the backbone is eager, as lightly's is.
FP32 = ("training.precision=fp32", "training.channels_last=false", "training.compile=views")
BF16 = ("training.precision=bf16", "training.channels_last=true", "training.compile=views")
WAYS = {
    "lightly defaults": Way("lightly", FP32),
    "ours defaults": Way("ours", huge_pages=True),
    "lightly fp32 contiguous": Way("lightly", FP32, huge_pages=True),
    "ours fp32 contiguous": Way("ours", FP32, huge_pages=True),
    "lightly bf16 channels_last": Way("lightly", BF16, huge_pages=True),
    "ours bf16 channels_last": Way("ours", BF16, huge_pages=True),
}
#: The pairs to compare: ours, lightly's.
PAIRS = {
    "defaults": ("ours defaults", "lightly defaults"),
    "fp32 contiguous": ("ours fp32 contiguous", "lightly fp32 contiguous"),
    "bf16 channels_last": ("ours bf16 channels_last", "lightly bf16 channels_last"),
}


@dataclass(frozen=True)
class Task:
    """A measurement in a process of its own; picklable."""

    way: Way
    root: Path
    width: int
    batch: int
    workers: int
    warm_up: int
    steps: int

    def config(self) -> RunConfig:
        changes = (f"data.root={self.root}", f"backbone.width={self.width}", f"training.batch_size={self.batch}")
        return load_config(CONFIG, [*changes, *self.way.options])


class LightlySimCLR(nn.Module):
    """A backbone and lightly's projection head, combined as in its examples."""

    def __init__(self, config: RunConfig) -> None:
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__()
        self.backbone = config.backbone.cls.build(config.backbone.options, 3, 32)
        features, head = self.backbone.spec.feature_dim, config.method.options.projector
        self.projection_head = SimCLRProjectionHead(features, head.hidden_dim, head.output_dim, head.layers)

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projection_head(self.backbone(images).pooled)
        return projected


def lightly_steps(task: Task, device: torch.device) -> Iterator[None]:
    """Makes a training step of lightly's at each iteration."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from torchvision.datasets import CIFAR10

    config = task.config()
    _, view = our_views(32)
    dataset = LightlyDataset.from_torch_dataset(CIFAR10(task.root), transform=lightly_views(32, view, MEAN, STD))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=task.batch, shuffle=True, drop_last=True, num_workers=task.workers
    )
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    model = LightlySimCLR(config).to(device, memory_format=layout)
    criterion = NTXentLoss(temperature=config.method.options.temperature)
    # The learning rate of lightly's CIFAR-10 benchmark.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06 * task.batch / 128, momentum=0.9, weight_decay=5e-4)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=config.training.precision == "bf16")
    total = torch.zeros((), device=device)
    for _ in itertools.count():
        for views, _, _ in loader:
            first, second = (view.to(device, memory_format=layout) for view in views)
            with autocast():
                loss = criterion(model(first), model(second))
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def measure_lightly(task: Task) -> dict[str, Any]:
    """Returns images per second, and how the steps were made."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = lightly_steps(task, device)
    speed = images_per_second(partial(next, steps), task, device)
    steps.close()  # ends the workers
    training = task.config().training
    made = {"precision": training.precision, "channels_last": training.channels_last, "compile": "none"}
    return {"images_per_second": speed, "made": {**made, "workers": task.workers, "threads": torch.get_num_threads()}}


def measure_ours(task: Task) -> dict[str, Any]:
    """Returns images per second, and how the steps were made, with each `auto` resolved."""
    session = build(task.config())
    session.source.prepare()
    loop = Loop(session, Context(session, RunDirectory(Path(tempfile.gettempdir()))), 0)
    training = session.config.training

    def step() -> None:
        loop.step()
        if loop.context.progress.step % training.log_every == 0:
            loop.record()

    speed = images_per_second(step, task, session.device)
    made = training.model_dump(include={"precision", "channels_last", "compile"})
    source = type(session.source).__name__
    return {"images_per_second": speed, "made": {**made, "source": source, "threads": torch.get_num_threads()}}


def images_per_second(step: Callable[[], None], task: Task, device: torch.device) -> float:
    """Makes the warm-up steps and those that count, and waits for the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(task.warm_up):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(task.steps):
        step()
    wait()
    return task.steps * task.batch / (time.perf_counter() - began)


MEASURES = {"ours": measure_ours, "lightly": measure_lightly}


def measure_rounds(tasks: dict[str, Task], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Runs every task in a process of its own, one after the other, in each round.

    Returns:
        images per second of each round, and how each made its steps.
    """
    speeds: dict[str, list[float]] = {name: [] for name in tasks}
    made: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")
    for number, (name, task) in itertools.product(range(rounds), tasks.items()):
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(task.way.huge_pages))  # a process reads it once
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            result = pool.submit(MEASURES[task.way.tool], task).result()
        speeds[name].append(result["images_per_second"])
        made[name] = result["made"] | {"huge_pages": task.way.huge_pages}
        say(f"round {number + 1}: {name}: {speeds[name][-1]:.1f} images/s")
    return speeds, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT", help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18; 64 is the usual one")
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--workers", type=int, default=2, help="processes of lightly's loader")
    parser.add_argument("--warm-up", type=int, default=8, help="steps before those that count; fill the loader's queue")
    parser.add_argument("--steps", type=int, default=20, help="steps that count, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), metavar="PAIR", help="some of them only"
    )
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    arguments = parser.parse_args()
    if not is_installed("lightly"):
        parser.error("lightly is not installed: pip install 'sslcli[benchmark]'")
    if not (arguments.root / "cifar-10-batches-py").is_dir():
        parser.error(f"DATA_ROOT: no cifar-10-batches-py in {arguments.root}; give the folder that holds it")
    pairs = {name: PAIRS[name] for name in arguments.pairs}
    wanted = {name for pair in pairs.values() for name in pair}
    tasks = {
        name: Task(
            way, arguments.root.absolute(), arguments.width, arguments.batch, arguments.workers, arguments.warm_up,
            arguments.steps,
        )
        for name, way in WAYS.items()
        if name in wanted
    }  # fmt: skip
    speeds, made = measure_rounds(tasks, arguments.rounds)
    ratios = {
        name: [our / other for our, other in zip(speeds[ours], speeds[theirs], strict=True)]
        for name, (ours, theirs) in pairs.items()
    }
    report = {
        "what": "images per second of SimCLR training steps on CIFAR-10, from the files to the updated weights; "
        "ratios are ours / lightly",
        "images_per_second": {name: summary(values) for name, values in speeds.items()},
        "ratios": {name: summary(values, 3) for name, values in ratios.items()},
        "made": made,
        **{name: getattr(arguments, name) for name in ("width", "batch", "warm_up", "steps", "rounds")},
        **circumstances("lightly"),
    }
    publish(report, arguments.output)


if __name__ == "__main__":
    main()
