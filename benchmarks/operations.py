"""Counts the operations and memory traffic of one optimizer step of SimCLR, kernel by kernel, without computing it.

The step runs on tensors without values: forward, backward and the optimizer's update as in torch's eager mode.
Operations are those of matrix products and convolutions, a multiply-add counts as two (torch's own formulas); bytes are
those of every tensor that a kernel reads or writes. Drawing the parameters of the views, a few numbers per image, is
not counted.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sslcli.config.resolve import RunConfig
from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, RunInfo, View
from sslcli.evaluation.extraction import autocast
from sslcli.optimizers.groups import build_groups
from sslcli.views.pipeline import ViewMaker

PHASES = ("views", "forward", "backward", "optimizer")
CHANNELS = 3

_aten = torch.ops.aten
#: Arguments that a kernel reads twice: batch norm for its statistics and then for its result, a convolution's backward
#: for the gradient of its input and then for that of its weights.
_READ_TWICE = {
    _aten.native_batch_norm: (0,),
    _aten.native_batch_norm_backward: (0, 1),
    _aten.convolution_backward: (0,),
}
_ALLOCATIONS = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}


@dataclass(frozen=True)
class Kernel:
    """One kernel of a step.

    Attributes:
        phase: one of `PHASES`.
        name: torch's name of the operation.
        dtype: of its first tensor: the arithmetic of a matrix product.
        operations: of a matrix product or convolution, a multiply-add as two; 0 for all others.
        read: bytes.
        written: bytes.
    """

    phase: str
    name: str
    dtype: torch.dtype
    operations: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Counter(TorchDispatchMode):
    """Records every operation of torch as a `Kernel` while it is entered; `phase` is the phase of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.phase = PHASES[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        inputs = _tensors((args, kwargs))
        written = [*_mutated(func, args, kwargs), *_new(_tensors(result), inputs)]
        if func.namespace != "aten" or packet in _ALLOCATIONS or not written:  # a view of existing memory
            return result
        again = [args[index] for index in _READ_TWICE.get(packet, ())]
        count = flop_registry.get(packet)
        self.kernels.append(
            Kernel(
                self.phase,
                str(func),
                (inputs or written)[0].dtype,
                count(*args, **kwargs, out_val=result) if count else 0,
                _bytes([*inputs, *again]),
                _bytes(written),
            )
        )
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors, or lists of them, that the operation writes to, by its schema."""
    written = [a for a in enumerate(func._schema.arguments) if a[1].alias_info is not None and a[1].alias_info.is_write]
    return _tensors([args[n] if n < len(args) else kwargs.get(argument.name) for n, argument in written])


def _new(results: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    known = {tensor.untyped_storage()._cdata for tensor in inputs}
    return [tensor for tensor in results if tensor.untyped_storage()._cdata not in known]


def _bytes(tensors: Iterable[Tensor]) -> int:
    # A tensor that is expanded to a larger shape is read only once.
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


@dataclass(frozen=True)
class Work:
    """The cost of one step.

    Attributes:
        batch: images in the step.
        kernels: of eager code.
        least_bytes: of each phase, the memory traffic that fusion cannot avoid: see `count_step`.
    """

    batch: int
    kernels: tuple[Kernel, ...]
    least_bytes: dict[str, int]

    def operations(self) -> dict[str, dict[torch.dtype, int]]:
        """Operations of matrix products and convolutions by phase and precision."""
        totals: dict[str, dict[torch.dtype, int]] = {phase: defaultdict(int) for phase in PHASES}
        for kernel in self.kernels:
            if kernel.operations:
                totals[kernel.phase][kernel.dtype] += kernel.operations
        return totals

    def eager_bytes(self) -> dict[str, int]:
        """Bytes that all kernels move, by phase."""
        return {phase: sum(k.bytes for k in self.kernels if k.phase == phase) for phase in PHASES}


def count_step(config: RunConfig, batch: int, precision: str, source_side: int | None) -> Work:
    """Counts one step of a method that needs neither labels nor schedules.

    The least bytes are those of the matrix products and convolutions, as if everything between them (batch norm, ReLU,
    sums, casts) were fused into them; of the uint8 images read and the views written; and of weights, gradients and
    optimizer state read and written once.

    Args:
        config: its dataset is not opened.
        batch: images in the step.
        precision: `fp32`, `bf16` or `fp16`.
        source_side: side in pixels of the resident images that the views are cropped from; None where worker
            processes have cropped them.
    """
    info = DataInfo("none", CHANNELS, None, (0.5,) * CHANNELS, (0.25,) * CHANNELS)
    run = RunInfo(total_steps=1, steps_per_epoch=1, epochs=1, batch_size=batch, world_size=1, data=info)
    counter = Counter()
    images = _count_views(counter, config, batch, source_side)
    with FakeTensorMode(allow_non_fake_inputs=True):
        sides = [view.size for view in config.views for _ in range(view.count)]
        backbone = config.backbone.cls.build(config.backbone.options, CHANNELS, max(sides))
        method = config.method.cls(backbone, config.method.options, run)
        groups = build_groups(method, config.optimizer.options)
        optimizer = config.optimizer.cls.build(groups, config.optimizer.options)
        views = [View(torch.empty(batch, CHANNELS, side, side)) for side in sides]
        with counter:
            counter.phase = "forward"
            with autocast(torch.device("cpu"), precision):
                step = method(Batch(views, None, torch.arange(batch), {}))
            counter.phase = "backward"
            step.loss.backward()
            counter.phase = "optimizer"
            optimizer.step()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = _tensors([optimizer.state[p] for p in parameters])
    size = 4 if precision == "fp32" else 2
    least = {phase: sum(k.bytes for k in counter.kernels if k.phase == phase and k.operations) for phase in PHASES}
    least["views"] = images + size * batch * CHANNELS * sum(side**2 for side in sides)
    least["optimizer"] = 3 * _bytes(parameters) + 2 * _bytes(state)
    return Work(batch, tuple(counter.kernels), least)


def _count_views(counter: Counter, config: RunConfig, batch: int, source_side: int | None) -> int:
    """Counts the kernels of the views; returns the bytes of the uint8 images that they are made from."""
    maker = ViewMaker(config.views, CHANNELS, (0.5,) * CHANNELS, (0.25,) * CHANNELS, seed=0)
    sizes = None if source_side is None else torch.full((batch, 2), source_side)
    draws = maker.draw(0, torch.arange(batch), sizes).to(torch.device("meta"))
    affine = torch.empty(2, CHANNELS, 1, 1, device="meta").unbind()
    with counter:
        if source_side is None:
            sources = [_images(batch, size) for size in maker.sizes]
        else:
            gathered = _images(2 * batch, source_side).index_select(0, torch.arange(batch, device="meta"))
            sources = [gathered] * len(maker)
        rest = iter(sources)
        for group, parameters in zip(maker.groups, draws.values, strict=True):
            own = list(itertools.islice(rest, len(group)))
            group.apply(
                group.make, own, parameters, *affine, source_side is None, torch.contiguous_format, batch * len(own)
            )
    return _bytes({id(source): source for source in sources}.values())


def _images(count: int, side: int) -> Tensor:
    return torch.empty(count, CHANNELS, side, side, dtype=torch.uint8, device="meta")
