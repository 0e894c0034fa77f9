"""Groups of processes for tests: forked from this one, which has imported torch, so that each costs some 30 ms."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from sslcli.training import group

T = TypeVar("T")


def in_group(world: int, work: Callable[[int], T], folder: Path, *, timeout: float = 800) -> list[T]:
    """Calls `work(rank)` on that many processes of one gloo group; returns what they return, in the order of ranks.

    Args:
        world: number of processes; with one it is called without a group.
        work: may be any function, also a local one; its result is pickled.
        folder: for results and what the processes print.
        timeout: seconds after which they are ended, and the test fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    importlib.import_module("torch._dynamo")  # which joining a group imports: once here instead of in each process
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_member, args=(rank, world, port, work, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        said = "\n".join((folder / f"{rank}.txt").read_text() for rank in range(world))
        assert [process.exitcode for process in processes] == [0] * world, said
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]


def _member(rank: int, world: int, port: int, work: Callable[[int], Any], folder: Path) -> None:
    sys.stdout = sys.stderr = (folder / f"{rank}.txt").open("w")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        with group.joined("cpu"):
            found = work(rank)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
