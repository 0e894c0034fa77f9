"""The process group as methods and losses see it: gathers and reductions that are the identity on one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslcli.contracts.errors import SslError

T = TypeVar("T")

#: Longer than any work that processes wait for.
_PATIENCE = timedelta(days=30)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


class _GatherWithGradient(torch.autograd.Function):
    """Forward: all processes' rows. Backward: each process's rows get the sum of what all processes say of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: the incoming gradient may be another operand's too, and is not ours to change.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(x: Tensor, *, gradient: bool = False) -> Tensor:
    """Returns every process's `x` (N, …), joined in rank order: (world·N, …). N must be the same everywhere.

    With `gradient`, the backward is an all-reduce sum; DDP then averages over processes, so that a loss that is the
    mean over all processes' samples gets exactly the gradient it has on one process with the joined batch when each
    process returns world × its share, or the whole mean.
    """
    if not is_distributed():
        return x
    x = x.contiguous()
    if gradient:
        gathered: Tensor = _GatherWithGradient.apply(x)
        return gathered
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Returns the mean of `x` over processes, without gradient; `x` itself is not changed."""
    if not is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Returns the sum of `x` over processes, without gradient; `x` itself is not changed."""
    if not is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def all_reduce_amax(x: Tensor) -> Tensor:
    """Returns the largest of all processes' values, element by element, without gradient, on the tensor's device."""
    if not is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def all_reduce_max(value: int) -> int:
    """Returns the largest of all processes' values, over the CPU's backend (no wait for a GPU)."""
    if not is_distributed():
        return value
    tensor = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def from_main(value: T) -> T:
    """Returns rank 0's value on every process."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Returns every process's value, in rank order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_of_machine(work: Callable[[], T]) -> T:
    """Does work on the first process of each machine, and returns its result on all processes of that machine.

    However long it takes, the others wait. A machine's ranks follow each other, as torchrun gives them.

    Raises:
        SslError: work failed with it on the first process of this machine; on all of them.
    """
    if not is_distributed():
        return work()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    first = rank() - local
    # It ends with the run's own group: torch 2.6 hangs now and then where one of gloo's ends before.
    patient: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    made: list[Any] = [None]
    problem: SslError | None = SslError("the first process of this machine did not finish what the others waited for")
    try:
        if local == 0:
            made = [work()]
            problem = None
    except SslError as error:
        problem = error
    finally:  # an interruption too: the others would wait for ever
        states: list[Any] = [None] * world_size()
        dist.all_gather_object(states, (first, problem), group=patient)
    problem = states[first][1]
    if problem is not None:
        raise problem
    if local:
        dist.recv_object_list(made, first, group=patient)
    else:  # to those who want it; a gather would take its size for every process
        for other, (its_first, _) in enumerate(states):
            if its_first == first and other != first:
                dist.send_object_list(made, other, group=patient)
    result: T = made[0]
    return result


def average_(tensors: list[Tensor]) -> None:
    """Sets each tensor to its mean over processes, in place, with one reduction."""
    if not is_distributed() or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()
