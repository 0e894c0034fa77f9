"""Builds everything a run needs from its config, before anything is written to disk."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.contracts.callback import Callback
from sslcli.contracts.data import Dataset, StreamDataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard
from sslcli.contracts.method import Method, Progress, RunInfo
from sslcli.contracts.optimizer import Schedule
from sslcli.contracts.source import Source
from sslcli.data.cache.dataset import CachedDataset, open_cached
from sslcli.data.crops import wanted_side
from sslcli.data.files import FileOptions
from sslcli.data.lanes import images_per_epoch
from sslcli.data.source import ResidentSource, open_source
from sslcli.data.subset import limited
from sslcli.evaluation.extraction import autocast
from sslcli.logs import lines_to
from sslcli.memory import out_of_memory
from sslcli.modules.headed import HeadedBackbone
from sslcli.modules.sync_norm import synchronize_batch_norm
from sslcli.optimizers.groups import build_groups, effective_lr
from sslcli.runs.arithmetic import allow_tf32, use_deterministic_kernels
from sslcli.runs.device import memory_format, resolve_device, resolve_precision
from sslcli.version import __version__
from sslcli.views.normalize import normalize
from sslcli.views.pipeline import ViewMaker

from .compilation import compile_parts
from .network import build_method
from .position import Position, beginning
from .scaler import LossScaler
from .state import frozen_digests
from .view_phases import first_steps, largest_view

log = logging.getLogger(__name__)

#: What to try if there is no room for the network or the data.
SMALLER = "try a smaller backbone, smaller heads of the method, or fewer images (data.limit)"


@dataclass
class Session:
    """The objects of a run. `config` has every `auto` resolved; `scaler` does nothing except in fp16.

    Attributes:
        position: where this session of the run begins.
        made_with: what the run is made with besides its config (see `provenance`).
    """

    config: RunConfig
    device: torch.device
    scaler: LossScaler
    dataset: Dataset | StreamDataset
    source: Source
    views: ViewMaker
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    info: RunInfo
    callbacks: dict[str, Callback]
    position: Position
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def shift(self) -> int:
        """See `Progress.shift`."""
        return self.position.made - self.position.step

    @property
    def last_step(self) -> int:
        """The step of the plan after which the run ends."""
        return min((self.config.training.max_steps or sys.maxsize) - self.shift, self.info.total_steps)

    @property
    def image_size(self) -> int:
        """Side in pixels of the largest view of all phases, for which the backbone is built and evaluated."""
        return largest_view(self.config)

    @property
    def images(self) -> int:
        """Of an epoch."""
        return self.position.images

    @property
    def has_labels(self) -> bool:
        return has_labels(self.dataset)

    @property
    def resident(self) -> bool:
        """Whether all images stay on the device."""
        return isinstance(self.source, ResidentSource)

    @property
    def data_bytes(self) -> int:
        """Bytes of the images that stay on the device."""
        return self.source.images.nbytes if isinstance(self.source, ResidentSource) else 0

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Digests of the method's frozen modules, which do not change in a run."""
        return frozen_digests(self.method)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.training.precision)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) on the device → float32, normalized as in training."""
        return normalize(images, *self._statistics)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std on the device, so that no batch waits for them."""
        info = self.info.data  # a resumed run's, which are not the dataset's if images have changed
        return torch.tensor(info.mean, device=self.device), torch.tensor(info.std, device=self.device)

    def card(self, progress: Progress) -> BackboneCard:
        """The description to store with the backbone's weights."""
        info, encoder = self.info.data, self.method.encoder()
        return BackboneCard(
            backbone=self.config.backbone.plain(), channels=info.channels, image_size=self.image_size,
            feature_dim=encoder.spec.feature_dim, mean=info.mean, std=info.std, method=self.config.method.name,
            dataset=info.name, step=progress.made, epoch=progress.epoch, sslcli=__version__,
            head=encoder.options.plain() if isinstance(encoder, HeadedBackbone) else None,
        )  # fmt: skip


@out_of_memory("while the run was built", SMALLER)
def build(
    config: RunConfig,
    *,
    fresh: bool = True,
    compiled: bool = True,
    budget: float | None = None,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    processes: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Session:
    """Opens the data and builds views, backbone, method, optimizer and callbacks.

    Args:
        config: the whole configuration.
        fresh: the run starts, so that the backbone gets the weights that its options name; False to resume one.
        compiled: compile what `training.compile` says; False to only show the plan.
        budget: bytes of images that may be kept on the device; None: `resident_budget`.
        statistics: mean and std of a resumed run, in place of the data's own, which change with the images.
        processes: that will train it; None: those that there are.
        tell: shows messages to the user, as well as the handlers of the logger `sslcli`.

    Raises:
        UserError: options do not fit together, in one line.
        OutOfMemory: there is no room for the network, the optimizer or the images.
    """
    with lines_to(tell):
        config, device = device_resolved(config)
        dataset = config.data.cls.open(config.data.options)
        dataset = dataset if isinstance(dataset, StreamDataset) else limited(dataset)
        images = dataset.info  # not assigned to: a plugin's may be a property
        if statistics is not None and len(statistics[0]) == images.channels:
            mean, std = map(tuple, statistics)
            images = dataclasses.replace(images, mean=mean, std=std)
        config = _fitting_batch(config, dataset, processes or distributed.world_size())
        training = config.training
        if config.method.cls.needs_labels and not has_labels(dataset):
            raise UserError(f"method: {config.method.name!r} needs labels, but {dataset.info.name!r} has none")
        views, *later = [
            ViewMaker(phase.views, images.channels, images.mean, images.std, config.seed)
            for phase in config.view_phases
        ]
        # By the whole run's epochs, not by `max_steps`: a run in parts must read what the run in one piece does.
        data = open_cached(dataset, wanted_side(views, *later), training.epochs, training.workers)
        config = _cache_resolved(config, data)
        if any(maker.in_workers for maker in (views, *later)):
            budget = 0
        source = open_source(
            data, device, training.batch_size, training.accumulate, config.seed,
            distributed.rank(), distributed.world_size(), views=views, workers=training.workers,
            budget=budget, drop_last=training.drop_last, stall_timeout=training.stall_timeout,
        )  # fmt: skip
        total_steps = training.epochs * source.steps_per_epoch
        views.later = list(zip(first_steps(config, total_steps), later, strict=True))
        info = RunInfo(
            total_steps=total_steps, steps_per_epoch=source.steps_per_epoch,
            epochs=training.epochs, batch_size=training.batch_size, world_size=distributed.world_size(),
            data=images, view_sizes=tuple(max(views.phases, key=lambda maker: max(maker.sizes)).sizes),
        )  # fmt: skip
        method = build_method(config, dataset, info, device, fresh=fresh, processes=processes).to(device)
        if training.sync_batch_norm and distributed.is_distributed():
            synchronize_batch_norm(method, device)
        if training.channels_last:
            method = method.to(memory_format=memory_format(method, device))
            if memory_format(method, device) != torch.channels_last:
                log.info("training.channels_last: off, since torch crashes with so narrow convolutions on this device")
        config = compile_parts(config, source, views, method, compiled=compiled, fresh=fresh)
        options = config.optimizer.options
        optimizer = config.optimizer.cls.build(build_groups(method, options), options)
        base_lr = effective_lr(options, training.batch_size)
        if not math.isfinite(base_lr):
            raise UserError(f"optimizer.lr: {options.lr} is too much to scale by the batch size: set it to less")
        schedule = config.schedule.cls(config.schedule.options, base_lr, info.total_steps, info.steps_per_epoch)
        callbacks = {name: choice.cls(choice.options) for name, choice in config.callbacks.items()}
        scaler = LossScaler(device, enabled=training.precision == "fp16")
        count = images_per_epoch(dataset) if isinstance(dataset, StreamDataset) else len(dataset)
        session = Session(
            config, device, scaler, dataset, source, views, method, optimizer, schedule, info, callbacks,
            beginning(info, count),
        )  # fmt: skip
        reading = "all in memory" if session.resident else "read while training"
        log.debug(f"{device}, {training.precision}, training.compile={config.training.compile}; images are {reading}")
        return session


def device_resolved(config: RunConfig) -> tuple[RunConfig, torch.device]:
    """The config with device and precision resolved, and this process's device; sets what torch does there, which
    callers of `build` restore (`settings_restored`)."""
    training = config.training
    device = resolve_device(training.device, "training.device")
    # Only the type of a device matters to the run, not its index.
    name = training.device if training.device != "auto" else device.type
    precision = resolve_precision(training.precision, device)
    config = dataclasses.replace(config, training=training.model_copy(update={"device": name, "precision": precision}))
    use_deterministic_kernels(training.deterministic)
    # Also what autocast leaves in float32 (losses, views, weight norms) is float32, unless TF32 was asked for.
    allow_tf32(precision == "tf32")
    return config, distributed.own_device(device)


def _fitting_batch(config: RunConfig, dataset: Dataset | StreamDataset, processes: int) -> RunConfig:
    """The config with a default batch size that is no larger than the dataset."""
    training = config.training
    if isinstance(dataset, StreamDataset) or "batch_size" in training.model_fields_set:
        return config
    size = 1 << (max(len(dataset), 2).bit_length() - 1)
    if size >= training.batch_size or size % (training.accumulate * processes):
        return config
    images = f"there are only {len(dataset):,} images" if len(dataset) > 1 else "there is only one image"
    log.info(f"training.batch_size: {size} instead of {training.batch_size}: {images}")
    return dataclasses.replace(config, training=training.model_copy(update={"batch_size": size}))


def has_labels(dataset: Dataset | StreamDataset) -> bool:
    """Returns whether batches of a dataset have labels."""
    return (dataset.info.classes if isinstance(dataset, StreamDataset) else dataset.labels) is not None


def _cache_resolved(config: RunConfig, data: Dataset | StreamDataset) -> RunConfig:
    """The config with `data.cache: auto` resolved."""
    options = config.data.options
    if not isinstance(options, FileOptions) or options.cache != "auto":
        return config  # only datasets of files can be cached; another's `cache` has its own meaning
    options = options.model_copy(update={"cache": data.kind if isinstance(data, CachedDataset) else "none"})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, options=options))


def plan(session: Session) -> dict[str, Any]:
    """Returns the size of a run, for `--dry-run`."""
    info, training = session.info, session.config.training
    return {
        "images": session.images,
        "epochs": info.epochs,
        "steps_per_epoch": info.steps_per_epoch,
        "steps": session.last_step + session.shift,
        "batch_size": training.batch_size,
        "views": shown_views(session.views) if session.views.later else len(session.views),
        "lr": session.schedule.base,
        "device": str(session.device),
        "precision": training.precision,
        "feature_dim": session.method.encoder().spec.feature_dim,
        "backbone_parameters": sum(p.numel() for p in session.method.encoder().parameters()),
        "trainable_parameters": sum(p.numel() for p in session.method.parameters() if p.requires_grad),
        "data_bytes": session.data_bytes,
    }


def shown_views(views: ViewMaker) -> str:
    """The views of every phase: `2 of 32 px; from step 541: 2 of 64 px`."""
    return "; ".join([str(views), *(f"from step {begin + 1}: {maker}" for begin, maker in views.later)])
