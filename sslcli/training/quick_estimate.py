"""What a step takes of the memory, roughly, at a small share of a step's time: shown when a run has begun.

Forward passes of two and of four images, of which everything that the backward pass would need is added up; it grows
with the number of images. The estimate of `--dry-run` (`estimate.py`) runs whole steps, views and updates too,
on tensors without values, and needs torch's compiler for it, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby

import torch
from torch import Tensor, nn

from sslcli.contracts.method import Batch, DrawKeys, ParameterGroup, View
from sslcli.data.source import free_memory
from sslcli.optimizers.groups import split_by_role
from sslcli.runs.device import memory_format
from sslcli.views.pipeline import ViewMaker

from .loop import Scheduled
from .memory import Estimate, held_bytes
from .setup import Session

#: Images of the two passes.
FEW, MORE = 2, 4


def quick_estimate(session: Session) -> Estimate:
    """Estimates the peak memory of a step of a run on one process; neither session nor torch's generator is changed."""
    training, held = session.config.training, held_bytes(session)
    free = free_memory(session.device)
    free = None if free is None else free + sum(held.values())  # which is part of the estimate
    largest = max(session.views.phases, key=lambda maker: sum(size**2 for size in maker.sizes))
    share = training.batch_size // training.accumulate
    trained = sum(p.nbytes for p in session.method.parameters() if p.requires_grad)
    eager = torch.compiler.set_stance("force_eager") if training.compile == "all" else nullcontext()
    cuda = [session.device] if session.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda), eager, _buffers_restored(session.method):
            state = held["optimizer state"] or int(trained * _state_share(session))
            few, more = (_saved_bytes(session, largest, count) for count in (FEW, MORE))
    except Exception as error:  # plugins may do anything; an estimate must not end a run
        return Estimate(problem=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    saved = few + (more - few) * (share - FEW) // (MORE - FEW)
    return Estimate(held["dataset"], held["parameters"], state, trained + max(saved, 0), free)


@contextmanager
def _buffers_restored(method: nn.Module) -> Iterator[None]:
    """Puts back batch statistics, queues and whatever else a forward pass changes, resizes or adds."""
    kept = [
        (module, {name: (each, None if each is None else each.clone()) for name, each in module._buffers.items()})
        for module in method.modules()
    ]
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.clear()
            for name, (buffer, value) in buffers.items():
                if buffer is not None and value is not None:
                    buffer.data = value
                module._buffers[name] = buffer


def _saved_bytes(session: Session, views: ViewMaker, share: int) -> int:
    """What a forward pass of so many images keeps for the backward pass, without parameters."""
    method, device = session.method.train(), session.device
    layout = torch.contiguous_format
    if session.config.training.channels_last:
        layout = memory_format(method, device)
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor.detach()  # the tensor itself would keep its own graph alive

    images: list[Tensor] = []
    for size, same in groupby(views.sizes):  # slices of one tensor, as a `ViewMaker` makes them
        count, channels = len(list(same)), session.dataset.info.channels
        made = torch.empty((count * share, channels, size, size), device=device, memory_format=layout).zero_()
        images += made.chunk(count)
    labels = torch.zeros(share, dtype=torch.int64, device=device) if session.has_labels else None
    schedule = Scheduled(method.schedules(), 0, device)
    keys = DrawKeys(session.config.seed, 0, 0, torch.arange(share))
    batch = Batch([View(image) for image in images], labels, torch.arange(share), schedule, keys)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), session.autocast():
        result = method(batch)
    own = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    total = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
    del result
    return total


def _state_share(session: Session) -> float:
    """Bytes of the optimizer's state for each byte of a parameter, by one step on a small one."""
    choice, weight = session.config.optimizer, nn.Parameter(torch.zeros(64, 64))
    groups = split_by_role(ParameterGroup({"weight": weight}), {"weight": "weight"}, choice.options)
    optimizer = choice.cls.build(groups, choice.options)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    return held / weight.nbytes
