"""The loop around `method(batch)`: the same for every method, without waiting for the device between log lines."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sslcli import distributed
from sslcli.contracts.callback import Reading
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, DrawKeys, Progress, Step, StepFunction, View
from sslcli.contracts.source import SourceBatch
from sslcli.evaluation.quality import effective_rank, feature_std
from sslcli.modules.sync_norm import local_statistics
from sslcli.optimizers.groups import set_rates, weight_decay_schedule
from sslcli.optimizers.kernels import scale_each_
from sslcli.phases import phase
from sslcli.randomness import seed_for, seed_generators
from sslcli.runs.device import memory_format

from .checks import Checks
from .compilation import batch_of_zeros
from .context import Context
from .meter import Arriving, Meter
from .network import SEED_STEP
from .setup import Session
from .state import frozen_state

log = logging.getLogger(__name__)

#: Log lines from one effective rank to the next: its eigenvalues take 5 to 11 ms on an H100
#: (`benchmarks/results/gpu-env.json`), a quarter of a step.
RANK_EVERY = 10


class Scheduled(Mapping[str, Tensor]):
    """The values of a method's schedules at a step, each made when it is asked for, on the device: a copy from the host
    would synchronize."""

    def __init__(self, functions: Mapping[str, StepFunction], step: int, device: torch.device) -> None:
        self.functions, self.step, self.device = functions, step, device
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.made:
            self.made[name] = torch.full((), self.functions[name](self.step), dtype=torch.float32, device=self.device)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)


class Loop:
    """Runs optimizer steps after the `start` already done; keeps the `progress` of `context` up to date."""

    def __init__(self, session: Session, context: Context, start: int) -> None:
        self.session, self.context = session, context
        self._set_progress(start)
        self.method, self.optimizer = session.method, session.optimizer
        self.schedules: dict[str, StepFunction] = self.method.schedules()
        self.weight_decay = weight_decay_schedule(session.config.optimizer.options, session.info.total_steps)
        channels_last = session.config.training.channels_last
        self.memory_format = memory_format(self.method, session.device) if channels_last else torch.contiguous_format
        self.module = self._distribute(start)
        self.without_reduction: Callable[[], AbstractContextManager[object]] = getattr(
            self.module, "no_sync", nullcontext
        )
        # Statistics that differ between processes: averaged after each step, so no state is local.
        self.local_statistics = local_statistics(self.method)
        self.parameters = [p for p in self.method.parameters() if p.requires_grad]
        self.meter = Meter(session.device)
        context.read = self.read
        self.checks = Checks(session, self.meter)
        self.features: Tensor | None = None
        self.replaced: set[str] = set()
        self.batches: Iterator[list[SourceBatch]] = session.source.batches(start)

    def _distribute(self, start: int) -> torch.nn.Module:
        """Wraps the method for several processes; on one it is returned unchanged."""
        if not distributed.is_distributed():
            return self.method
        from torch.nn.parallel import DistributedDataParallel  # takes seconds to import

        device = self.session.device
        # Buffers are equal on all ranks without being broadcast: batch norm is synchronized, queues hold gathered keys.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        quiet: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        devices = [device.index] if device.type == "cuda" else None
        module = DistributedDataParallel(self.method, device_ids=devices, gradient_as_bucket_view=True, **quiet)
        # The first steps of a wrapper reduce gradients in another order than later ones do. With two discarded steps at
        # every start, a resumed run is bitwise identical to one that was not interrupted.
        frozen = frozen_state(self.method)
        kept = {n: tensor if n in frozen else tensor.clone() for n, tensor in self.method.state_dict().items()}
        session = self.session
        if session.views.later:  # the order is that of the first phase's graph, which other views could change
            start, share = 0, session.config.training.batch_size // distributed.world_size()
            share //= session.config.training.accumulate
            source_batch = batch_of_zeros(session.views, session.source, share, device, labeled=session.has_labels)
        else:
            source_batch = next(session.source.batches(start))[0]
        schedule = Scheduled(self.schedules, start, self.session.device)
        for _ in range(2):
            self._begin_graphs()
            torch.autograd.backward(self._forward(module, source_batch, start, schedule).loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.method.load_state_dict(kept)
        return module

    def _begin_graphs(self) -> None:
        """Lets CUDA graphs overwrite what they returned in the last step."""
        if self.session.config.training.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _set_progress(self, step: int) -> None:
        info = self.session.info
        self.context.progress = Progress(step, info.total_steps, info.steps_per_epoch, self.session.shift)

    def step(self) -> None:
        """Runs one optimizer step, over all its micro-batches."""
        session, step = self.session, self.context.progress.step
        for number, (begin, views) in enumerate(session.views.later, start=2):
            if step == begin:
                phase_of = f"phase {number} of {len(session.views.phases)}"
                log.info(f"step {self.context.progress.made + 1}: {phase_of} begins, views: {views}")
        self._begin_graphs()
        # The schedule is a function of the step about to be made: the first step gets its first value.
        set_rates(self.optimizer, step, session.schedule, self.weight_decay)
        schedule = Scheduled(self.schedules, step, session.device)
        began = time.perf_counter()
        with phase("data"):
            micro_batches = next(self.batches)
        self.meter.waited += time.perf_counter() - began
        self.module.train()
        results: list[Step] = []
        metrics: dict[str, Tensor] = {}
        for number, source_batch in enumerate(micro_batches):
            self.seed(step, number)
            # Gradients of all but the last micro-batch are added up on each process before they are reduced.
            with self.without_reduction() if number < len(micro_batches) - 1 else nullcontext():
                result = self._forward(self.module, source_batch, step, schedule)
                loss = result.loss / len(micro_batches)
                with phase("backward"):
                    torch.autograd.backward(session.scaler.scale(loss))
            results.append(dataclasses.replace(result, loss=loss.detach(), metrics={}))
            for name, value in result.metrics.items():
                part = value.detach() / len(micro_batches)
                metrics[name] = metrics[name] + part if name in metrics else part
            self.meter.images += len(source_batch.index)
            self._warn_of_replaced(source_batch)
        with phase("update"):
            self._update()
        self._set_progress(step + 1)
        self.features = results[-1].features
        self.context.step_features = _joined([result.features for result in results])
        self.context.step_labels = _joined([source_batch.labels for source_batch in micro_batches])
        with phase("update"), torch.no_grad():
            self.method.after_step([result.carry for result in results], self.context.progress)
            distributed.average_(self.local_statistics)
        self.meter.add(step + 1, torch.stack([result.loss for result in results]).sum(), metrics)

    def seed(self, step: int, number: int) -> None:
        """Seeds dropout, for example: a function of the step, so that a resumed run draws the same numbers."""
        seed = seed_for(self.session.config.seed, SEED_STEP, step, number, distributed.rank())
        seed_generators(seed, self.session.device)

    def make_views(self, source_batch: SourceBatch, step: int = 0) -> list[Tensor]:
        """Returns the views of a micro-batch of a step as the method receives them, one tensor (N, C, S, S) each."""
        return self.session.views.at(step).make(source_batch, self.memory_format)

    def _forward(
        self, module: torch.nn.Module, source_batch: SourceBatch, step: int, schedule: Mapping[str, Tensor]
    ) -> Step:
        views = [View(view) for view in self.make_views(source_batch, step)]
        keys = DrawKeys(self.session.config.seed, step, source_batch.epoch, source_batch.positions)
        batch = Batch(views, source_batch.labels, source_batch.index, schedule, keys)
        with phase("forward"), self.session.autocast():
            result = module(batch)
        if not isinstance(result, Step):
            raise UserError(
                f"method {self.session.config.method.name!r}: {type(self.method).__name__}.forward returned "
                f"{type(result).__name__}, not Step; return sslcli.contracts.method.Step(loss)"
            )
        return result

    def _warn_of_replaced(self, source_batch: SourceBatch) -> None:
        """Names each image that could not be read once."""
        for message in source_batch.replaced:
            if message not in self.replaced:
                self.replaced.add(message)
                log.warning(f"unreadable image replaced: {message}")

    def _update(self) -> None:
        scaler, clip = self.session.scaler, self.session.config.training.clip
        scaler.unscale_(self.optimizer)
        self.method.after_backward(self.context.progress)
        if clip is not None and clip.mode == "global":
            torch.nn.utils.clip_grad_norm_(self.parameters, clip.norm)
        elif clip is not None:
            clip_each(self.parameters, clip.norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def read(self) -> Reading | None:
        """Returns the values of the steps so far, without a wait for the device; None before any since a log line."""
        meter, step = self.meter, self.context.progress.step
        if not meter.count:
            return None
        images, waited, paused = meter.totals()
        images *= self.session.info.world_size
        loss = Arriving(meter.sums["loss"], meter.count)
        return Reading(step, float(self.session.schedule(step - 1)), images, waited, paused, loss.get)

    def record(self) -> dict[str, float]:
        """Returns the values since the last log line, and resets them; RunFailed if the loss was not finite."""
        self.checks.check_loss()
        meter = self.meter
        metrics = meter.means()  # waits for the device, so that the time below includes its part of the steps
        seconds = meter.seconds()
        step = self.context.progress.step - 1
        line = {"loss": metrics.pop("loss"), "lr": float(self.session.schedule(step))}
        if self.weight_decay is not None:
            line["weight_decay"] = self.weight_decay(step)
        line["images_per_second"] = round(meter.images * self.session.info.world_size / seconds, 1)
        line["data_wait"] = round(meter.waited / seconds, 4)
        line |= metrics | self.session.scaler.take()
        meter.reset()  # what follows counts for the next line, so that a rate includes what log lines cost
        if self.features is not None:
            features = distributed.all_gather(self.features)
            line["feature_std"] = feature_std(features).item()
            if self._rank_is_due():
                line["feature_rank"] = effective_rank(features).item()
        if self.replaced:
            line["unreadable_images"] = len(self.replaced)
        return line

    def _rank_is_due(self) -> bool:
        """At the first log line, every tenth one, and the last: by the step, so that a resumed run has the same."""
        step, every = self.context.progress.step, self.session.config.training.log_every
        return step in (every, self.session.last_step) or step % (RANK_EVERY * every) == 0


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """One tensor with the rows of all micro-batches; None if one of them has none."""
    present = [part.detach() for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    return present[0] if len(present) == 1 else torch.cat(present)


def clip_each(parameters: list[torch.nn.Parameter], norm: float) -> None:
    """Scales each parameter's gradient whose L2 norm is above `norm` down to it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    scale_each_(gradients, (norm / (norms + 1e-6)).clamp(max=1.0))
