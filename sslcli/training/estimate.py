"""The peak memory of a training step, estimated without allocating it.

Real optimizer steps of a session (views, method, backward pass, update) run on tensors without values, while a tracker
adds up the storages that are alive. Eager code; what a kernel allocates inside itself is not seen.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslcli.contracts.method import Method
from sslcli.contracts.source import FirstImages, Source, SourceBatch
from sslcli.data.plan import Plan
from sslcli.data.source import ResidentSource, free_memory
from sslcli.optimizers.groups import build_groups
from sslcli.runs.directory import RunDirectory
from sslcli.views.pipeline import ViewMaker

from .context import Context
from .loop import Loop
from .memory import Estimate, held_bytes
from .scaler import LossScaler
from .setup import Session

#: The first step creates the optimizer's state, the second one has it from its beginning.
_STEPS = 2
#: Rows that a CPU makes views of at once are those of about this many numbers; more would only be the same again.
_NUMBERS_AT_ONCE = 1 << 19


def estimate(session: Session, processes: int = 1) -> Estimate:
    """Estimates the peak memory of a step on one process; neither the session nor torch's generator is changed.

    Args:
        session: as `setup.build` returns it with `compiled=False`.
        processes: of which each gets its share of the batch, and DDP keeps all gradients.

    Raises:
        UserError: the batch cannot be shared so.
    """
    training = session.config.training
    Plan(session.dataset.info.name, session.images, training.batch_size, training.accumulate, world_size=processes)
    held = held_bytes(session)
    free = free_memory(session.device)
    if free is not None:
        if session.device.type != "cuda":  # the memory of this machine is for all of them
            free //= processes
        free += sum(held.values())  # they are part of the estimate, and allocated already
    try:
        with torch.random.fork_rng(devices=[]):
            # Each phase's views may take the most.
            peak, state = max(_run(session, views, processes) for views in session.views.phases)
    except Exception as error:  # plugins may do anything; an estimate must not keep a run from starting
        needs = isinstance(error, DataDependentOutputException | DynamicOutputShapeException)
        what = "a step needs the values of its tensors" if needs else "a step without values failed"
        return Estimate(problem=f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:160]})")
    step = peak - held["parameters"] - state
    if processes > 1:
        step += sum(p.nbytes for p in session.method.parameters() if p.requires_grad)
    return Estimate(held["dataset"], held["parameters"], state, step, free)


def _run(session: Session, views: ViewMaker, processes: int) -> tuple[int, int]:
    """Runs steps on these views without values; returns the peak of all but the dataset, and the optimizer's state."""
    training = session.config.training
    share = training.batch_size // (training.accumulate * processes)
    session = dataclasses.replace(session, views=views)
    source = _Images(session, share)
    views = cast(ViewMaker, _Views(session, share))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, LiveStorages() as live:
        method = _without_values(session.method, fake)
        live.add([*method.parameters(), *method.buffers()])
        optimizer = session.config.optimizer.cls.build(
            build_groups(method, session.config.optimizer.options), session.config.optimizer.options
        )
        copied = dataclasses.replace(
            session, method=method, optimizer=optimizer, source=source, views=views, callbacks={},
            scaler=LossScaler(session.device, enabled=False),
        )  # fmt: skip
        loop = _Loop(copied, Context(copied, RunDirectory(Path())), 0)
        for _ in range(min(_STEPS, session.info.total_steps)):
            loop.step()
        return live.peak, held_bytes(copied)["optimizer state"]


class _Loop(Loop):
    """The training loop, on tensors without values."""

    def seed(self, step: int, number: int) -> None:
        """Nothing: a seed is computed with tensors, and there is nothing to draw."""


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of the tensors that operations return, until each is freed.

    Attributes:
        bytes: alive now.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._pin_memory.default:  # it has no version without values
            func = torch.ops.aten.clone.default
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Counts the storages of tensors, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive:
                continue
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

            def freed(_: object, key: int = key, size: int = size) -> None:
                self._alive.pop(key, None)
                self.bytes -= size

            self._alive[key] = weakref.ref(storage, freed)


def _without_values(method: Method, fake: FakeTensorMode) -> Method:
    """A copy of a method whose parameters and buffers have no values; shapes, strides and devices are the same."""
    memo: dict[int, Any] = {}
    with unset_fake_temporarily():
        originals = [*method.parameters(), *method.buffers()]
    for tensor in originals:
        empty = fake.from_tensor(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = empty
    return copy.deepcopy(method, memo)


class _Images(Source):
    """Endless batches of the shapes of a session's own, without values."""

    def __init__(self, session: Session, share: int) -> None:
        self.session = session
        self.steps_per_epoch = session.info.steps_per_epoch
        self.index = torch.arange(share)
        self.cropped = not isinstance(session.source, ResidentSource)

    def batches(self, step: int) -> Iterator[list[SourceBatch]]:
        while True:
            yield [self._batch() for _ in range(self.session.config.training.accumulate)]

    def first_images(self, step: int, count: int, side: int) -> FirstImages:
        return FirstImages(self._batch(), [], torch.empty(0, 2), [])

    def _batch(self) -> SourceBatch:
        device, shapes = self.session.device, _shapes(self.session, len(self.index))
        labels = None
        if self.session.has_labels:
            labels = torch.zeros(len(self.index), dtype=torch.int64, device=device)
        images = [torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes]
        return SourceBatch(images, self.cropped, labels, self.index, self.index, 0)


class _Views:
    """Stands for a session's `ViewMaker` and its draws.

    A CPU works in chunks, of which only the first one is made here, and on the samples alone that an operation has
    chosen. Which these are depends on values, so that here it works on all of them, as a GPU does: in a chunk the
    difference does not matter.
    """

    later = ()

    def __init__(self, session: Session, share: int) -> None:
        self.maker, self.device, self.share = copy.copy(session.views), session.device, share
        rows = share
        if session.device.type == "cpu":
            rows = max(1, _NUMBERS_AT_ONCE // (session.dataset.info.channels * max(session.views.sizes) ** 2))
        self.rows = min(share, rows)
        side = _shapes(session, 1)[0][-2:] if isinstance(session.source, ResidentSource) else None
        sizes = torch.tensor([side]).expand(self.rows, 2) if side is not None else None
        self.draws = self.maker.draw(0, torch.arange(self.rows), sizes)

    def at(self, step: int) -> _Views:
        return self

    def make(self, batch: SourceBatch, memory_format: torch.memory_format) -> list[Tensor]:
        if self.device.type != "cpu":
            return self.maker.apply(batch.images, self.draws.to(self.device), batch.cropped, memory_format)
        gpu = torch.device("cuda")  # tensors without values need none
        rows = [torch.empty((self.rows, *each.shape[1:]), dtype=each.dtype, device=gpu) for each in batch.images]
        made = self.maker.apply(rows, self.draws.to(gpu), batch.cropped, memory_format)
        shapes = [(self.share, *view.shape[1:]) for view in made]
        layouts = [torch.contiguous_format if view.is_contiguous() else torch.channels_last for view in made]
        del rows, made
        return [torch.empty(shape, memory_format=layout) for shape, layout in zip(shapes, layouts, strict=True)]


def _shapes(session: Session, rows: int) -> list[tuple[int, ...]]:
    """Of the images that the session's source hands over: one tensor for all views, or one for each."""
    if isinstance(session.source, ResidentSource):
        return [(rows, *session.source.images.shape[1:])]
    return [(rows, session.dataset.info.channels, size, size) for size in session.views.sizes]
