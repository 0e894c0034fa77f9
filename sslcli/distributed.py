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

#: Longer than any work for which processes wait.
_PATIENCE = timedelta(days=30)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def _gather(x: Tensor) -> Tensor:
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x)
    return torch.cat(rows)


class _GatherWithGradient(torch.autograd.Function):
    """Forward: all processes' rows. Backward: the gradient of a process's rows is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy, because autograd may share the incoming gradient with another operand.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(x: Tensor, *, gradient: bool = False) -> Tensor:
    """Returns every process's `x` (N, …), concatenated in rank order: (world·N, …). N must be the same everywhere.

    With `gradient`, the backward pass is an all-reduce sum, and DDP then averages over processes. So a loss that is the
    mean over all processes' samples gets exactly the gradient of one process with the whole batch, if each process
    returns world × its share, or the whole mean.
    """
    if not is_distributed():
        return x
    gathered: Tensor = (_GatherWithGradient.apply if gradient else _gather)(x.contiguous())
    return gathered


def _reduce(x: Tensor, op: Any) -> Tensor:
    if not is_distributed():
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=op)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Returns the mean of `x` over processes, without gradient; `x` itself is not changed."""
    return _reduce(x, dist.ReduceOp.SUM) / dist.get_world_size() if is_distributed() else x


def all_reduce_sum(x: Tensor) -> Tensor:
    """Returns the sum of `x` over processes, without gradient; `x` itself is not changed."""
    return _reduce(x, dist.ReduceOp.SUM)


def all_reduce_amax(x: Tensor) -> Tensor:
    """Returns the elementwise maximum of `x` over processes, without gradient, on the tensor's device."""
    return _reduce(x, dist.ReduceOp.MAX)


def all_reduce_max(value: int) -> int:
    """Returns the largest of all processes' values, over the CPU's backend (no wait for a GPU)."""
    return int(_reduce(torch.tensor(value), dist.ReduceOp.MAX))


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
    """Calls `work` on the first process of each machine and returns its result on all processes of that machine.

    The others wait, however long it takes. The ranks of a machine are consecutive, as torchrun assigns them.

    Raises:
        SslError: `work` raised it on the first process of this machine; on all processes of the machine.
    """
    if not is_distributed():
        return work()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    first = rank() - local
    # Destroyed with the run's own group: torch 2.6 sometimes hangs if a gloo group is destroyed before.
    patient: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    made: list[Any] = [None]
    problem: SslError | None = SslError("the first process of this machine ended before its work was done")
    try:
        if local == 0:
            made = [work()]
            problem = None
    except SslError as error:
        problem = error
    finally:  # after an interruption, too, or the others would wait forever
        states: list[Any] = [None] * world_size()
        dist.all_gather_object(states, (first, problem), group=patient)
    problem = states[first][1]
    if problem is not None:
        raise problem
    if local:
        dist.recv_object_list(made, first, group=patient)
    else:  # to the machine's own processes only; a gather would send it to all
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
    for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
