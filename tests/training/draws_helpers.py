"""Records what a method draws in its forward passes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from run_helpers import method_config
from torch import Tensor

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.method import Batch
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build


def drawn(*overrides: str, first: int = 0, steps: int = 6) -> dict[str, Tensor]:
    """Runs steps of SimCLR; returns `index`, `own` and `shared` numbers of all processes and micro-batches, in order.

    `shared` has a row for every micro-batch.
    """
    found = dict[str, list[Tensor]](index=[], own=[], shared=[])
    for batch in itertools.chain.from_iterable(recorded_steps(method_config("simclr", *overrides), steps, first)):
        found["index"].append(batch.index)
        found["own"].append(torch.cat([batch.uniform(3), batch.uniform(2, stream=1)], 1))
        found["shared"].append(torch.cat([batch.shared_uniform(3), batch.shared_uniform(2, stream=1)])[None])
    return {name: distributed.all_gather(torch.cat(parts)) for name, parts in found.items()}


def recorded_steps(config: RunConfig, steps: int, first: int = 0) -> list[list[Batch]]:
    """Runs steps; returns this process's micro-batches of each, as the method got them."""
    session = build(config)
    forward, found = session.method.forward, list[list[Batch]]()

    def recorded(batch: Batch) -> Any:
        found[-1].append(batch)
        return forward(batch)

    loop = Loop(session, Context(session, RunDirectory(Path())), first)
    session.method.forward = recorded  # type: ignore[method-assign]
    for _ in range(steps):
        found.append([])
        loop.step()
    return found


def assert_same_draws(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Whatever the order of the images within a step: each has the same numbers, and those shared are equal."""
    pairs = []
    for each in (found, expected):
        order = each["index"] * 1000 + (each["own"][:, 0] * 1000).long()  # an image has others in another epoch
        rows = order.argsort()
        pairs.append(torch.cat([each["index"][rows, None].float(), each["own"][rows]], 1))
    assert torch.equal(*pairs)
    assert torch.equal(*(torch.unique(each["shared"], dim=0) for each in (found, expected)))
