"""Tensors on a pretended CUDA device, and what every operation on them does: computed on the CPU, and entered in the
ledger. Devices that a GPU refuses to mix are refused here, with torch's own message."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from . import streams
from .ledger import ledger
from .rules import RESHAPING, SHARING, kernels_of, takes_numbers, wait_of


class Pretended(Tensor):
    """A tensor that says it is on a CUDA device. `elem` holds its numbers on the CPU; its views share `memory`."""

    elem: Tensor
    memory: streams.Memory
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: Tensor, device: torch.device, memory: streams.Memory | None = None) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device=device,
        )  # fmt: skip
        made.elem = elem
        made.memory = memory or streams.Memory(elem.untyped_storage().nbytes(), device)
        return made

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As torch's, to which the current device is "cuda" (in C++ a pretended one has no number)."""
        args = tuple(_numbered(each) for each in args)
        return super().to(*args, **{key: _numbered(value) for key, value in kwargs.items()})

    def cuda(self, device: Any = None, **kwargs: Any) -> Tensor:
        return self.to(device or "cuda", **kwargs)

    def tolist(self) -> Any:
        streams.wait_here("tolist")
        return self.elem.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def record_stream(self, stream: streams.Stream) -> None:
        self.memory.kept_for.add(stream)

    def is_pinned(self, *_: Any) -> bool:
        return False

    def pin_memory(self, *_: Any) -> NoReturn:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    __array__ = numpy

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError("a tensor on the device is pickled, and would be opened on a device by whoever reads it")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("elem", "memory")})
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({tuple(self.shape)}, {self.dtype}, {self.device})"


class Plan(NamedTuple):
    """What is known of an operation before it is called.

    `view`: its result is a part of its first argument. `written`: of each result, which argument it is, if any.
    """

    name: str
    view: bool
    writes: tuple[str | int, ...]
    written: tuple[str | int | None, ...]
    numbers: bool


@functools.cache
def _plan(func: torch._ops.OpOverload) -> Plan:
    schema = func._schema
    name = schema.name.split("::")[1]
    writes: dict[Any, str | int] = {}
    for index, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is not None and info.is_write:
            writes[frozenset(info.before_set)] = argument.name if argument.kwarg_only else index
    infos = [result.alias_info for result in schema.returns]
    written = tuple(writes.get(frozenset(info.before_set)) if info is not None else None for info in infos)
    view = any(info is not None and not info.is_write for info in infos)
    return Plan(name, view, tuple(writes.values()), written, takes_numbers(func, name))


def _numbered(value: Any) -> Any:
    """The device `cuda` with the current one's number."""
    if (isinstance(value, str) and value == "cuda") or (isinstance(value, torch.device) and value.type == "cuda"):
        device = torch.device(value)
        return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
    return value


def _un(value: Any) -> Any:
    return value.elem if isinstance(value, Pretended) else value


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Computes an operation on the CPU, and notes what a device would have done."""
    plan = _plan(func)
    if plan.name in ("_to_copy", "copy_"):
        return _converted(func, args, kwargs) if plan.name == "_to_copy" else _copied(func, args, kwargs)
    if plan.name == "as_strided_" and isinstance(args[0], Pretended) and tuple(args[1]) == tuple(args[0].shape):
        return args[0]  # torch's pooling gives dimensions of size 1 other strides, which say nothing
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, Pretended)]
    wanted = kwargs.get("device")
    device = torch.device(_numbered(wanted)) if wanted is not None else there[0].device if there else None
    if not there and (device is None or device.type != "cuda"):
        if kwargs.get("pin_memory"):
            return pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)
    if there:
        _check_devices(func, plan, args, tensors, there)
    wait = wait_of(plan.name, args, kwargs, Pretended)
    changed = [each for where in plan.writes for each in tree_leaves(_argument(args, kwargs, where))]
    for tensor in there:
        tensor.memory.use(write=any(tensor is each for each in changed))
    kernels, slow = kernels_of(plan.name, args, view=plan.view)
    ledger.kernel(kernels)
    if slow:
        ledger.per_tensor(plan.name)
    if wait is not None:
        streams.wait_here(wait)
    plain = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else dict(kwargs)
    if plain.get("pin_memory"):
        plain["pin_memory"] = False
    out = func(*tree_map(_un, args), **tree_map(_un, plain))
    return _wrapped(func, plan, args, kwargs, out, there, device)


def _argument(args: Any, kwargs: Any, where: str | int) -> Any:
    return kwargs.get(where) if isinstance(where, str) else args[where] if where < len(args) else None


def _wrapped(func: Any, plan: Plan, args: Any, kwargs: Any, out: Any, there: Any, device: Any) -> Any:
    """What the caller gets: the argument itself where it was changed, else tensors on the device."""
    if out is None or device.type != "cuda":
        return out
    memory = there[0].memory if there and (plan.view or plan.name in SHARING) else None

    def one(value: Any) -> Any:
        is_new = isinstance(value, Tensor) and not isinstance(value, Pretended)
        return Pretended(value, device, memory) if is_new else value

    if plan.name in RESHAPING:  # in place; only torch's own code does so, and goes on with the result
        return Pretended(out, device, args[0].memory)
    if not any(where is not None for where in plan.written):
        return tree_map(one, out)
    many = isinstance(out, tuple)
    results = [
        tree_map(one, value) if where is None else _argument(args, kwargs, where)
        for value, where in zip(out if many else (out,), plan.written, strict=True)
    ]
    for result in results:
        if isinstance(result, Pretended) and (result.shape, result.stride()) != (
            result.elem.shape,
            result.elem.stride(),
        ):
            raise NotImplementedError(f"{func} changes the shape of a tensor on the pretended device")
    return tuple(results) if many else results[0]


def _check_devices(func: Any, plan: Plan, args: Any, tensors: list[Tensor], there: list[Pretended]) -> None:
    devices = {each.device for each in there}
    others = [each for each in tensors if not isinstance(each, Pretended)]
    if "index" in plan.name and isinstance(args[1], (list, tuple)):  # indices may be on the CPU, but see WAITS
        if others and not isinstance(args[0], Pretended):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        others = [each for each in others if not any(each is index for index in args[1])]
    if any(each.dim() > 0 for each in others) or (others and not plan.numbers):
        devices |= {each.device for each in others}
    if len(devices) > 1:
        found = ", ".join(sorted(str(device) for device in devices))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {found}: {func}"
        )


# --- copies ---------------------------------------------------------------------------------------------------------


def pin(tensor: Tensor) -> Tensor:
    """A copy in pinned memory; every view of it is pinned too."""
    copied = tensor.clone()
    copied.untyped_storage().pinned = True
    return copied


def pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "pinned", False)


def _note_copy(source: Tensor, *, later: bool) -> None:
    """Between host and device; `later`: the host goes on at once."""
    ledger.copies[ledger.section] += 1
    if isinstance(source, Pretended):
        source.memory.use(write=False)
    if not later:
        to = "from the device" if isinstance(source, Pretended) else "to the device"
        streams.wait_here(f"a copy {to}{'' if isinstance(source, Pretended) or pinned(source) else ', unpinned'}")


def _converted(func: Any, args: Any, kwargs: Any) -> Any:
    """`_to_copy`: another dtype, memory format or device."""
    source = args[0]
    wanted = kwargs.get("device")
    device = source.device if wanted is None else torch.device(_numbered(wanted))
    out = func(_un(source), **{key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")})
    later = bool(kwargs.get("non_blocking"))
    if device.type != "cuda":
        if not isinstance(source, Pretended):
            return out
        _note_copy(source, later=later)
        if later:  # torch lets it go to pinned memory
            out, numbers = pin(out), out
            streams.arrive_later(out, numbers)
        return out
    if not isinstance(source, Pretended):
        _note_copy(source, later=later and pinned(source))
    else:
        source.memory.use(write=False)
        ledger.kernel(1)
    return Pretended(out, device)


def _copied(func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[:2]
    later = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    to, of = isinstance(target, Pretended), isinstance(source, Pretended)
    if of and not to and later and pinned(target):
        _note_copy(source, later=True)
        streams.arrive_later(target, source.elem.clone())
        return target
    if to and of:
        source.memory.use(write=False)
        ledger.kernel(1)
    elif to or of:
        _note_copy(source, later=to and later and pinned(source))
    if to:
        target.memory.use(write=True)
    func(_un(target), _un(source))
    return target


class Mode(TorchDispatchMode):
    """Sees what makes tensors, which no pretended one is an argument of."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
