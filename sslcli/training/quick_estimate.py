"""What a step will take of the memory, roughly, in a fraction of a second: shown when a run starts.

One forward pass on tensors without values, of which everything that the backward pass will need is added up. The
estimate of `--dry-run` (`estimate.py`) runs whole steps, views and updates too; it takes ten times as long, and needs
torch's compiler, whose import takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.method import Batch, DrawKeys, ParameterGroup, View
from sslcli.data.source import free_memory
from sslcli.optimizers.groups import split_by_role
from sslcli.runs.device import memory_format
from sslcli.views.pipeline import ViewMaker

from .memory import Estimate, held_bytes
from .setup import Session


def quick_estimate(session: Session) -> Estimate:
    """Estimates the peak memory of a step of a run on one process; neither session nor torch's generator is changed."""
    held = held_bytes(session)
    free = free_memory(session.device)
    free = None if free is None else free + sum(held.values())  # which is part of the estimate
    largest = max(session.views.phases, key=lambda maker: sum(size**2 for size in maker.sizes))
    trained = sum(p.nbytes for p in session.method.parameters() if p.requires_grad)
    try:
        with torch.random.fork_rng(devices=[]):
            state = held["optimizer state"] or int(trained * _state_share(session))
            saved = _saved_bytes(session, largest)
    except Exception as error:  # plugins may do anything; an estimate must not keep a run from starting
        return Estimate(problem=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return Estimate(held["dataset"], held["parameters"], state, trained + saved, free)


def _saved_bytes(session: Session, views: ViewMaker) -> int:
    """What a forward pass on one micro-batch keeps for the backward pass, without parameters."""
    training, meta = session.config.training, torch.device("meta")
    # There is no autocast on torch's device `meta`: all that is computed is in the precision that it would choose.
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.precision, torch.float32)
    share = training.batch_size // training.accumulate
    layout = memory_format(session.method, session.device) if training.channels_last else torch.contiguous_format
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    memo: dict[int, Any] = {}
    for tensor in (*session.method.parameters(), *session.method.buffers()):
        empty = torch.empty_like(tensor, device=meta, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    method = copy.deepcopy(session.method, memo).train()
    images: list[Tensor] = []
    for size, same in groupby(views.sizes):  # slices of one tensor, as a `ViewMaker` makes them
        count, channels = len(list(same)), session.dataset.info.channels
        made = torch.empty((count * share, channels, size, size), device=meta, dtype=dtype, memory_format=layout)
        images += made.chunk(count)
    labels = torch.zeros(share, dtype=torch.int64, device=meta) if session.has_labels else None
    schedule = {name: torch.full((), at(0), device=meta) for name, at in method.schedules().items()}
    keys = DrawKeys(session.config.seed, 0, 0, torch.arange(share))
    batch = Batch([View(image) for image in images], labels, torch.arange(share), schedule, keys)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), _no_autocast_on_meta():
        method(batch)
    own = {parameter.untyped_storage()._cdata for parameter in method.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)


@contextmanager
def _no_autocast_on_meta() -> Iterator[None]:
    """Lets the losses' `torch.autocast("meta", enabled=False)` be what it means there, where torch refuses it."""
    real: Any = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[object]:
        return nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.autocast = real  # type: ignore[misc]


def _state_share(session: Session) -> float:
    """Bytes of the optimizer's state for each byte of a parameter, by one step on a small one."""
    choice, weight = session.config.optimizer, nn.Parameter(torch.zeros(64, 64))
    groups = split_by_role(ParameterGroup({"weight": weight}), {"weight": "weight"}, choice.options)
    optimizer = choice.cls.build(groups, choice.options)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    return held / weight.nbytes
