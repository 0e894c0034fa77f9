"""Bytes that one step of each method moves between processes, by what moves them; two processes, gloo, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/communication.py [--methods simclr swav] [--batch 4 8] [--output communication]

Measured: every collective of a step, by its payload (of an all-gather what a process contributes, of all others the
tensor), with each method's own recipe and options, on a narrow ResNet-18 and images of 32 px, and for Barlow Twins and
VICReg with narrow hidden layers, since neither changes what is gathered. Two batches per process tell what grows with
the images from what does not. DDP's gradients, counted in its communication hook, must be 4 bytes for each trained
parameter; so those of full networks are computed from their parameters. Statistics of batch norm are scaled by the
channels. Not counted: log lines, checkpoints, and 8 bytes a step that say whether to stop.

Statistics are those of `sslcli.modules.sync_norm`: two all-reduces of C numbers forward and two backward. On GPUs
torch's SyncBatchNorm gathers 2C + 1 forward instead and reduces 2C backward: as much contributed, but for the 1, which
is not counted, and sent N - 1 times.

`--table FILE` prints the table of docs/scale.md from a result: bytes that a GPU sends in a ring (an all-reduce of S
bytes sends 2(N - 1)/N times S, an all-gather N - 1 times what a process contributes, and so does the reduce-scatter of
its gradient), for 64 images on each GPU and a ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from report import circumstances, publish, say
from torch.nn.modules.batchnorm import _BatchNorm

from sslcli import distributed
from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.modules import sync_norm
from sslcli.plugins import find, load
from sslcli.runs.directory import RunDirectory
from sslcli.training import group
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import Session, build

WORLD, SIZE = 2, 32
IMAGES = 64  #: of each GPU, in the table
STATISTICS = ("statistics, forward", "statistics, backward")
SMALL = {"name": "resnet18", "width": 16, "stem": "small"}
NARROW: dict[str, dict[str, Any]] = {name: {"projector": {"hidden_dim": 256}} for name in ("barlow_twins", "vicreg")}


class Counted:
    """Counts the payloads of collectives while it is open."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.of_norms = False

    def add(self, kind: str, tensor: torch.Tensor) -> None:
        if self.of_norms:
            in_backward = torch._C._current_graph_task_id() != -1
            kind = "statistics, backward" if in_backward else "statistics, forward"
        self.bytes[kind] += tensor.numel() * tensor.element_size()

    def __enter__(self) -> Counted:
        self.before = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}
        self.mean = sync_norm.all_reduce_mean
        for name, at in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
            setattr(dist, name, self._counting(name.replace("_", "-"), self.before[name], at))

        def of_norms(x: torch.Tensor) -> torch.Tensor:
            self.of_norms = True
            try:
                return self.mean(x)
            finally:
                self.of_norms = False

        sync_norm.all_reduce_mean = of_norms
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self.before.items():
            setattr(dist, name, function)
        sync_norm.all_reduce_mean = self.mean

    def _counting(self, kind: str, function: Callable[..., Any], at: int) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            self.add(kind, arguments[at])
            return function(*arguments, **named)

        return counting


def built(method: dict[str, Any], backbone: dict[str, Any], batch: int) -> Session:
    document = {
        "method": method,
        "backbone": backbone,
        "data": {"name": "shapes", "count": 4 * WORLD * batch, "size": SIZE},
        "training": {"batch_size": WORLD * batch, "epochs": 200, "precision": "fp32", "compile": "none",
                     "device": "cpu"},
        "callbacks": {"knn": None, "online_probe": None, "tensorboard": None, "progress": None},
    }  # fmt: skip
    return build(resolve(Document(document)), compiled=False)


def sizes(session: Session) -> dict[str, int]:
    """Trained parameters, and channels of batch norms that a step normalizes."""
    parameters = sum(p.numel() for p in session.method.parameters() if p.requires_grad)
    norms = [module for module in session.method.modules() if isinstance(module, _BatchNorm)]
    return {"parameters": parameters, "channels": sum(norm.num_features for norm in norms)}


def step(method: str, batch: int) -> dict[str, Any]:
    """Bytes of a step, and the sizes of the network, on this process."""
    session = built({"name": method, **NARROW.get(method, {})}, SMALL, batch)
    loop, counted = Loop(session, Context(session, RunDirectory(Path())), 0), Counted()

    def reduce(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        counted.add("gradients", bucket.buffer())
        work = counted.before["all_reduce"](bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0] / WORLD)  # type: ignore[no-any-return]

    # DDP compares annotations with its classes, which here are strings.
    reduce.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    loop.module.register_comm_hook(None, reduce)
    with counted:
        loop.step()
    return {"bytes": dict(counted.bytes), "sizes": sizes(session)}


def member(rank: int, port: int, words: tuple[str, int], file: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with group.joined("cpu"):
        found = step(*words)
        if distributed.rank() == 0:
            file.write_text(json.dumps(found))


def measured(*words: Any) -> dict[str, Any]:
    """`step` in a group of forked processes."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, file = probe.getsockname()[1], Path(folder) / "found.json"
        probe.close()
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=member, args=(rank, port, words, file)) for rank in range(WORLD)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def parts(method: str, batches: list[int]) -> dict[str, Any]:
    """By kind of message: bytes a step whatever the batch, and for each image of a process; both backbones' sizes."""
    small, large = (measured(method, batch) for batch in batches)
    found = {}
    for kind, count in sorted(large["bytes"].items()):
        slope = (count - small["bytes"].get(kind, 0)) / (batches[1] - batches[0])
        found[kind] = {"fixed": round(count - slope * batches[1]), "each_image": round(slope)}
    assert found["gradients"] == {"fixed": 4 * large["sizes"]["parameters"], "each_image": 0}
    full = {}
    for backbone in ("resnet18", "resnet50"):
        of = sizes(built({"name": method}, {"name": backbone}, 4))
        scale = of["channels"] / large["sizes"]["channels"]
        full[backbone] = {"gradients": 4 * of["parameters"]}
        full[backbone] |= {kind: round(found.get(kind, {"fixed": 0})["fixed"] * scale) for kind in STATISTICS}
    return {"measured": found, **full}


def table(report: dict[str, Any]) -> str:
    """Returns a row for each method: gradients, statistics as torch's SyncBatchNorm gathers and reduces them, what is
    gathered for an image, megabytes that each GPU of 8 and of 64 sends, and milliseconds at 450 and 50 GB/s."""
    lines = [
        "| method | gradients, MB | statistics, gathered + reduced, MB | gathered for an image, bytes "
        "| other reductions, MB | 8 GPUs: sent, MB | gathers of it | ms at 450 GB/s "
        "| 64 GPUs: sent, MB | gathers of it | ms at 50 GB/s |",
        "| --- " * 11 + "|",
    ]
    for method, found in sorted(report["methods"].items()):
        measured, full = found["measured"], found["resnet50"]
        gathered = measured.get("all-gather", {"each_image": 0})["each_image"]
        back = measured.get("all-reduce", {"each_image": 0})["each_image"] / report["processes"]
        others = sum(kind["fixed"] for name, kind in measured.items() if name not in ("gradients", *STATISTICS))
        forward, backward = (full[kind] for kind in STATISTICS)
        cells = [
            f"{full['gradients'] / 1e6:.0f}",
            f"{forward / 1e6:.1f} + {backward / 1e6:.1f}",
            f"{gathered:,}",
            f"{others / 1e6:.2f}",
        ]
        for world, rate in ((8, 450), (64, 50)):
            gathers = (world - 1) * ((gathered + back) * IMAGES + forward)
            sent = 2 * (world - 1) / world * (full["gradients"] + backward + others) + gathers
            cells += [f"{sent / 1e6:,.0f}", f"{gathers / sent:.0%}", f"{sent / rate / 1e6:.1f}"]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    names = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
    # What is measured has a ResNet, and no other network beside it.
    names = [name for name in names if not {"ViT", "teacher"} & {*load("methods", name).needs}]
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=names)
    parser.add_argument("--batch", nargs=2, type=int, default=[4, 8])
    parser.add_argument("--output")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table is not None:
        print(table(json.loads(given.table.read_text())))
        return
    torch.set_num_threads(1)
    __import__("torch._dynamo")  # joining a group imports it: once, instead of in every process
    results = {}
    for method in given.methods:
        results[method] = parts(method, given.batch)
        say(f"{method}: {results[method]}")
    report = {"circumstances": circumstances(), "processes": WORLD, "methods": results}
    publish(report, given.output)


if __name__ == "__main__":
    main()
