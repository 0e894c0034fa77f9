"""Bytes that one step of each method moves between two processes, by what moves them; gloo, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/communication.py [--backbone resnet50] [--methods simclr swav] [--batch 8 16]
        [--output communication]

Each method has its own recipe, options and optimizer, heads included; images of 32 px, since sizes of messages do not
depend on those of images (but where images themselves are sent: `shuffle_bn` without synchronized batch norms, which is
off here). Every collective of a step is counted by its payload: for an all-gather what a process contributes, for all
others the tensor. Two batches per process tell what grows with the images from what does not. DDP's gradients are
counted in its communication hook. Not counted: log lines, checkpoints, and 8 bytes a step that say whether to stop.

`statistics` are those of batch norm, as `sslcli.modules.sync_norm` makes them on a CPU, with two all-reduces of C
numbers forward and two backward; on GPUs torch's SyncBatchNorm gathers 2C + 1 forward and reduces 2C backward.
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

from sslcli import distributed
from sslcli.config.document import Document
from sslcli.config.resolve import resolve
from sslcli.modules import sync_norm
from sslcli.plugins import find
from sslcli.runs.directory import RunDirectory
from sslcli.training import group
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

WORLD, SIZE = 2, 32


class Counted:
    """Counts the payloads of collectives while it is open."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.of_norms = False

    def add(self, kind: str, tensor: torch.Tensor) -> None:
        kind = f"{kind} of statistics" if self.of_norms else kind
        self.bytes[kind] += tensor.numel() * tensor.element_size()
        self.calls[kind] += 1

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


def step(method: str, backbone: str, batch: int) -> dict[str, dict[str, int]]:
    """Bytes and calls of a step, on this process."""
    document = {
        "method": method,
        "backbone": {"name": backbone},
        "data": {"name": "shapes", "count": 2 * WORLD * batch, "size": SIZE},
        "views": {"size": SIZE} if method not in ("dino", "swav") else {},
        "training": {"batch_size": WORLD * batch, "epochs": 200, "precision": "fp32", "compile": "none",
                     "device": "cpu"},
        "callbacks": {"knn": None, "online_probe": None, "tensorboard": None, "progress": None},
    }  # fmt: skip
    session = build(resolve(Document(document)))
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
    return {"bytes": dict(counted.bytes), "calls": dict(counted.calls)}


def member(rank: int, port: int, words: tuple[str, str, int], file: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with group.joined("cpu"):
        found = step(*words)
        if distributed.rank() == 0:
            file.write_text(json.dumps(found))


def measured(*words: Any) -> dict[str, dict[str, int]]:
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
        found: dict[str, dict[str, int]] = json.loads(file.read_text())
        return found


def parts(method: str, backbone: str, batches: list[int]) -> dict[str, Any]:
    """For each kind of message: bytes a step whatever the batch, and bytes for each image of a process."""
    small, large = (measured(method, backbone, batch)["bytes"] for batch in batches)
    found = {}
    for kind in sorted(large):
        slope = (large[kind] - small.get(kind, 0)) / (batches[1] - batches[0])
        found[kind] = {"fixed": round(large[kind] - slope * batches[1]), "each_image": round(slope)}
    return found


def main() -> None:
    names = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=names)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", nargs=2, type=int, default=[4, 8])
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    __import__("torch._dynamo")  # joining a group imports it: once, instead of in every process
    results = {}
    for method in given.methods:
        results[method] = parts(method, given.backbone, given.batch)
        say(f"{method}: {results[method]}")
    report = {"circumstances": circumstances(), "backbone": given.backbone, "processes": WORLD, "methods": results}
    publish(report, given.output)


if __name__ == "__main__":
    main()
