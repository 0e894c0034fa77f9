"""The network of a run: the backbone, with the weights that it starts from, in its method."""

from __future__ import annotations

import torch

from sslcli.backbones.wrapped import WrappedBackbone
from sslcli.config.resolve import RunConfig
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset, StreamDataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method, RunInfo
from sslcli.randomness import seed_for
from sslcli.runs.weights import start_from

from .view_phases import keyed_phases, largest_view

#: Separates the streams of random numbers that are drawn from the run's one seed.
SEED_WEIGHTS, SEED_STEP = 1, 2


def build_method(config: RunConfig, dataset: Dataset | StreamDataset, info: RunInfo, *, fresh: bool) -> Method:
    """Builds backbone and method on the CPU, from the run's seed; UserError if the views do not suit the backbone.

    Args:
        config: of the run.
        dataset: to train on.
        info: see `RunInfo`.
        fresh: the backbone gets the weights that its options name.
    """
    size = largest_view(config)
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
