"""The process group as methods and losses see it: gathers and reductions that are the identity on one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslcli.contracts.errors import SslError

T = TypeVar("T")

#: Longer than any work for which processes wait.
_PATIENCE = timedelta(days=30)


#: Of this thread: others may go on to be part of the group.
_on_its_own: ContextVar[bool] = ContextVar("on_its_own", default=False)


@contextmanager
def on_its_own() -> Iterator[None]:
    """Lets this process work in the block as if it were the only one: what is called there waits for no other."""
    token = _on_its_own.set(True)
    try:
        yield
    finally:
        _on_its_own.reset(token)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_distributed() -> bool:
    return not _on_its_own.get() and _in_group()


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
        if gradients[0].is_cuda:  # half of what an all-reduce moves; gloo has it in later versions of torch only
            whole = gradients[0].contiguous()
            own = torch.empty_like(whole.chunk(dist.get_world_size())[0])
            dist.reduce_scatter_tensor(own, whole)
            return own
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


class _MeanWithGradient(torch.autograd.Function):
    """Forward and backward: the mean over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduce(x, dist.ReduceOp.SUM) / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _reduce(gradients[0], dist.ReduceOp.SUM) / dist.get_world_size()


def all_reduce_mean(x: Tensor, *, gradient: bool = False) -> Tensor:
    """Returns the mean of `x` over processes; `x` itself is not changed.

    With `gradient`, a loss that every process computes from the mean alone gets, after DDP has averaged, the gradient
    of one process with the whole batch.
    """
    if gradient and is_distributed():
        mean: Tensor = _MeanWithGradient.apply(x)
        return mean
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


def together(work: Callable[[], T]) -> T:
    """Calls `work` on every process and returns its result; if any has an SslError, that is raised on all."""
    problem: SslError | None = None
    try:
        result = work()
    except SslError as error:
        problem = error
    problems = [found for found in gather_objects(problem) if found is not None]
    if not problems:
        return result
    # Raised on every process: whichever one prints it, the user sees what was wrong.
    raised = problem or problems[0]
    raised.shared = is_distributed()
    raise raised


def lead(work: Callable[[], T], assist: Callable[[Any], object]) -> T | None:
    """Calls `work` on the main process and returns its result; the others help with what it orders, and return None.

    For work that only now and then is for all processes: they wait for the next order however long it takes. If a
    collective raises an error on all processes (`SslError.shared`), it is the main process's to handle. Any other error
    of `assist` is raised, and ends that process, so that the main one loses the group.

    Args:
        work: may call `order`; on one process that does nothing.
        assist: called on the others with the value of each order, for the collective that the main process goes on to.

    Raises:
        SslError: `work` has raised it, on all processes.
    """
    if not is_distributed():
        return work()
    group = _waiting()
    if rank() != 0:
        while (given := _ordered(None, group)) is not None:
            if isinstance(given, SslError):
                given.shared = True
                raise given
            try:
                assist(*given)
            except SslError as error:
                if not error.shared:
                    raise
        return None
    _leading.append(group)
    try:
        result = work()
    except Exception as error:
        with suppress(RuntimeError):  # the others may be what has failed
            _ordered(error if isinstance(error, SslError) else SslError("the main process has failed"), group)
        raise
    finally:
        _leading.clear()
    _ordered(None, group)
    return result


def order(value: Any) -> bool:
    """Calls the other processes to what this one, leading, does next; returns False, at once, where nobody is led."""
    if not _leading or not is_distributed():
        return False
    _ordered((value,), _leading[0])
    return True


#: The group that orders go through, while this process leads.
_leading: list[Any] = []


def _waiting() -> Any:
    """A group whose processes wait for each other as long as it takes; ended together with the run's own."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _ordered(given: tuple[Any] | SslError | None, group: Any) -> tuple[Any] | SslError | None:
    """What the main process gives: an order, an error, or None at the end."""
    box = [given]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def own_device(device: torch.device) -> torch.device:
    """Returns this process's own GPU for CUDA where there are several processes; any other device as it is."""
    if device.type == "cuda" and _in_group():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


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
    # Not destroyed here: torch 2.6 sometimes hangs if a gloo group is destroyed before the run's own.
    patient = _waiting()
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
        problem.shared = True  # by this machine, whose first process shows it
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
