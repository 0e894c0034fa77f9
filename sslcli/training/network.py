"""The network of a run: the backbone, with the weights that it starts from, in its method, if there is room."""

from __future__ import annotations

import torch

from sslcli.backbones.wrapped import WrappedBackbone
from sslcli.config.resolve import RunConfig
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset, StreamDataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method, RunInfo
from sslcli.data.source import free_memory
from sslcli.memory import readable
from sslcli.randomness import seed_for
from sslcli.runs.network_size import training_bytes, without_memory
from sslcli.runs.weights import start_from

from .view_phases import keyed_phases, largest_view

#: Separates the streams of random numbers that are drawn from the run's one seed.
SEED_WEIGHTS, SEED_STEP = 1, 2


def build_method(
    config: RunConfig,
    dataset: Dataset | StreamDataset,
    info: RunInfo,
    device: torch.device,
    *,
    fresh: bool,
    processes: int | None = None,
) -> Method:
    """Builds backbone and method on the CPU, from the run's seed.

    Args:
        config: of the run.
        dataset: to train on.
        info: see `RunInfo`.
        device: where they will be trained.
        fresh: the backbone gets the weights that its options name.
        processes: that will share a batch; None: those that there are.

    Raises:
        UserError: the network or the views cannot fit into memory, or the views do not suit the backbone.
    """
    size = largest_view(config)
    _check_views(config, dataset.info.channels, info.batch_size, processes or info.world_size, device)
    _check_size(config, dataset.info.channels, size, info, device)
    torch.manual_seed(seed_for(config.seed, SEED_WEIGHTS))
    backbone: Backbone = config.backbone.cls.build(config.backbone.options, dataset.info.channels, size)
    spec = backbone.spec
    if isinstance(backbone, WrappedBackbone):
        backbone.check_classes(len(dataset.info.classes or ()))
    for key, view in ((key, view) for key, phase in keyed_phases(config) for view in phase.views):
        if view.size < spec.minimum_size or view.size % spec.size_multiple:
            multiple = f", in multiples of {spec.size_multiple}" if spec.size_multiple > 1 else ""
            raise UserError(
                f"{key}.size: {config.backbone.name!r} cannot take images of {view.size} px; "
                f"it takes {spec.minimum_size} or more{multiple}"
            )
    if fresh:  # before methods copy the backbone
        start_from(backbone, config.backbone.name, config.backbone.options)
    method: Method = config.method.cls(backbone, config.method.options, info)
    method.freeze()
    return method


def _check_views(config: RunConfig, channels: int, batch_size: int, processes: int, device: torch.device) -> None:
    """Raises UserError if the views of a micro-batch alone, in float32, take more memory than is free."""
    share = batch_size // (config.training.accumulate * processes)
    wanted = 4 * channels * share * max(
        sum(view.count * view.size**2 for view in phase.views) for phase in config.view_phases
    )  # fmt: skip
    free = free_memory(device)
    if free is not None and wanted > free:
        raise UserError(
            f"views.size: the views of a micro-batch of {share} images take {readable(wanted)}, and {readable(free)} "
            f"of memory is free on {device}: set views.size, views.count or training.batch_size to less"
        )


def _check_size(config: RunConfig, channels: int, size: int, info: RunInfo, device: torch.device) -> None:
    """Raises UserError if parameters, gradients and an optimizer's state cannot fit into memory."""
    backbone, method = config.backbone, config.method
    if issubclass(backbone.cls, WrappedBackbone) or method.cls.frozen:
        return  # a given module is there already, and a teacher is read from a file
    try:
        network = without_memory(
            lambda: method.cls(backbone.cls.build(backbone.options, channels, size), method.options, info)
        )
    except RuntimeError:
        raise UserError(
            f"backbone, method: the network has more numbers than can be counted: set {_widths(config)} to less"
        ) from None
    if network is None:
        return
    wanted, free = training_bytes(network), free_memory(device)
    if free is not None and wanted > free:
        count = sum(parameter.numel() for parameter in network.parameters())
        raise UserError(
            f"backbone, method: {count:,} parameters take {readable(wanted)} in training, and {readable(free)} of "
            f"memory is free on {device}: set {_widths(config)} to less, or choose another backbone"
        )


def _widths(config: RunConfig) -> str:
    """The options that a network's size depends on."""
    there = {"backbone": ("width", "depth"), "method": ("projector", "predictor", "head", "prototypes", "queue_size")}
    return ", ".join(
        f"{section}.{name}{'.hidden_dim' if name in ('projector', 'predictor', 'head') else ''}"
        for section, names in there.items()
        for name in names
        if name in getattr(config, section).cls.Options.model_fields
    )
