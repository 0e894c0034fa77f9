"""Augmented images for probes: batches of one view of each labeled image, and the options that say which view."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import Subject
from sslcli.contracts.options import Options
from sslcli.contracts.source import SourceBatch
from sslcli.contracts.views import ViewSpec
from sslcli.data.source import open_source
from sslcli.views.pipeline import ViewMaker

log = logging.getLogger(__name__)

PROBE_TRAIN: dict[str, Any] = {"preset": "probe_train"}


class ImageOptions(Options):
    """Options of probes that see augmented images."""

    views: dict[str, Any] = PROBE_TRAIN
    """The one view of each image and epoch, as in a run's config; probe_train: a random crop of 8% or more, a flip."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; auto: bf16 if the device supports it natively, else fp16 on CUDA, else fp32."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Worker processes that decode images that don't fit on the device; 0: none; auto: CPU cores minus one."""

    @field_validator("views")
    @classmethod
    def _one_view(cls, value: dict[str, Any]) -> dict[str, Any]:
        count = sum(view.count for view in read_views(value, PROBE_TRAIN, 32))
        if count != 1:
            raise ValueError(f"a probe needs one view of an image, not {count}")
        return value


def read_views(section: Mapping[str, Any], default: Mapping[str, Any], size: int) -> tuple[ViewSpec, ...]:
    """Returns the views that a section means, as in a run's config, for images of this size.

    Raises:
        ValueError: all that is wrong with it, in one line.
    """
    problems = Problems(Document({}, {(): ""}))
    views = resolve_views(dict(section), dict(default), size, problems)
    if problems.lines:
        raise ValueError("; ".join(line.removeprefix(": ").removeprefix("views: ") for line in problems.lines))
    return views


def views_for(subject: Subject, section: Mapping[str, Any], default: Mapping[str, Any]) -> tuple[ViewSpec, ...]:
    """Returns the views that a section means for the subject's images; UserError where it asks for another size."""
    try:
        views = read_views(section, default, subject.image_size)
    except ValueError as error:
        raise UserError(f"evaluation: views: {error}") from error
    if max(view.size for view in views) != subject.image_size:
        raise UserError(f"views.size: the backbone is evaluated on images of {subject.image_size} px; omit views.size")
    return views


def normalization_of(subject: Subject, channels: int) -> tuple[list[float], list[float]]:
    """Returns mean and std, per channel of images in [0, 1], of the subject's normalization, which is affine."""
    ends = torch.tensor([0, 255], dtype=torch.uint8, device=subject.device).reshape(2, 1, 1, 1)
    black, white = subject.normalize(ends.expand(2, channels, 1, 1)).double().flatten(1).cpu()
    std = 1 / (white - black)
    return (-black * std).tolist(), std.tolist()


class ViewBatches:
    """Endless batches of one view of each image, normalized as the backbone was trained, with labels.

    An incomplete last batch of an epoch is left out; which images it would hold changes from epoch to epoch.

    Args:
        subject: whose device and normalization are used.
        data: labeled images.
        options: what the view is, and how many workers may decode.
        batch_size: at most the number of images.
        seed: of the images' order and of all draws.

    Attributes:
        steps_per_epoch: batches in an epoch.
        view: the view in full, as plain data.
    """

    def __init__(self, subject: Subject, data: Dataset, options: ImageOptions, batch_size: int, seed: int) -> None:
        (spec,) = views_for(subject, options.views, PROBE_TRAIN)
        self.view = spec.plain()
        self.device = subject.device
        mean, std = normalization_of(subject, data.info.channels)
        self._maker = ViewMaker([spec], data.info.channels, mean, std, seed)
        self._source = open_source(data, self.device, batch_size, seed=seed, views=self._maker, workers=options.workers)
        self.steps_per_epoch = self._source.steps_per_epoch

    def __iter__(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        named: set[str] = set()
        # Closing the source's generator ends its workers.
        with closing(cast("Generator[list[SourceBatch], None, None]", self._source.batches(0))) as stream:
            for (batch,) in stream:
                for name in batch.replaced:
                    if name not in named:
                        named.add(name)
                        log.warning(f"unreadable image replaced: {name}")
                sizes = None
                if not batch.cropped:
                    sizes = torch.tensor([batch.images[0].shape[-2:]]).expand(len(batch.index), 2)
                draws = self._maker.draw(batch.epoch, batch.positions, sizes).to(self.device)
                (images,) = self._maker.apply(batch.images, draws, cropped=batch.cropped)
                assert batch.labels is not None
                yield images, batch.labels
