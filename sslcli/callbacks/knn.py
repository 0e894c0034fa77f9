"""The callback `knn`: kNN accuracy of the encoder while it is being trained, beside that of raw pixels."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.callback import RunContext
from sslcli.contracts.evaluation import FeatureSet
from sslcli.contracts.options import FREE, Options
from sslcli.evaluation.scores import accuracy
from sslcli.evaluation.subject import share_images
from sslcli.evaluators.knn import knn_predict

from .shared_features import EpochMonitor, watched_features, watched_images

log = logging.getLogger(__name__)

#: Raw pixels are compared at this side at most; more of them do not make the comparison fairer, only dearer.
PIXEL_SIDE = 32


class KNNMonitorOptions(Options):
    every_epochs: int = Field(default=10, ge=1, json_schema_extra=FREE)
    """Measure after every so many epochs, and at the end."""
    k: int = Field(default=20, ge=1, json_schema_extra=FREE)
    """How many neighbors vote."""
    temperature: float = Field(default=0.07, gt=0, json_schema_extra=FREE)
    """τ of the weights exp(cosine / τ)."""
    limit_train: int | None = Field(default=10_000, ge=1, json_schema_extra=FREE)
    """How many labeled images to search for neighbors, the same share of each class. Up to 384 MiB of them are held
    in memory; more (from 113 pixels on at this default) are read again each time."""
    limit_eval: int | None = Field(default=2_000, ge=1, json_schema_extra=FREE)
    """How many images to judge."""
    pixels: bool = Field(default=True, json_schema_extra=FREE)
    """Also report the accuracy of raw pixels at the start."""


class KNNMonitor(EpochMonitor):
    """Logs `knn_top1`: a number to watch; `ssl eval --method knn` gives the one to report. It takes 1.6 % of the
    time of the training steps (where the online probe takes 0.6 %), and less with more images."""

    Options = KNNMonitorOptions
    options: KNNMonitorOptions

    def on_start(self, context: RunContext) -> None:
        if not context.is_main:
            return
        self.ready = self._open(context)
        if not self.ready or context.progress.step > 0:
            return
        texts, metrics = [], {}
        if self.options.pixels:
            pixels = _Pixels(context)
            found = [part.features(pixels, context) for part in self.parts]
            metrics["knn_top1_pixels"] = self._top1(found[0], found[1])
            texts.append(f"raw pixels {metrics['knn_top1_pixels']:.1%}")
        metrics |= self.measure(context)[0]
        self.measured_step = context.progress.step
        texts.append(f"the encoder before training {metrics['knn_top1']:.1%}")
        context.log(metrics)
        bank, judged = self.parts
        count = f"{judged.count:,} images among {bank.count:,}, k {self.options.k}"
        log.info(f"kNN top-1: {', '.join(texts)} ({count})")

    def measure(self, context: RunContext) -> tuple[dict[str, float], str]:
        bank = watched_features(context, "train", self.options.limit_train)
        top1 = self._top1(bank, watched_features(context, "eval", self.options.limit_eval))
        return {"knn_top1": top1}, f"kNN top-1 {top1:.1%}"

    def _open(self, context: RunContext) -> bool:
        """Reads both parts; False, and a line that says why, where there is nothing to measure."""
        train, judged = context.labeled("train"), context.labeled("eval")
        if train is None or judged is None or train.labels is None or judged.labels is None:
            labels = train is not None and train.labels is not None
            why = "there are no labeled images to judge on" if labels else "the data have no labels"
            log.info(f"kNN monitor: off, {why}")
            return False
        if share_images(train, judged):
            log.info("kNN monitor: off, it would search the images that it judges")
            return False
        self._classes = len(train.info.classes or ()) or int(max(train.labels.max(), judged.labels.max())) + 1
        bank = watched_images(context, "train", self.options.limit_train)
        images = watched_images(context, "eval", self.options.limit_eval)
        assert bank is not None
        assert images is not None
        self.parts = bank, images
        return True

    def _top1(self, bank: FeatureSet, judged: FeatureSet) -> float:
        assert bank.labels is not None
        assert judged.labels is not None
        options = self.options
        with torch.no_grad():
            scores = knn_predict(
                bank.features, bank.labels, judged.features, self._classes, options.k, options.temperature
            )
            return accuracy(scores, judged.labels)


class _Pixels(Backbone):
    """The pixels themselves as features, shrunk to 32 × 32 where there are more."""

    def __init__(self, context: RunContext) -> None:
        super().__init__()
        channels = context.encoder().spec.channels
        self.spec = BackboneSpec(channels * min(context.image_size, PIXEL_SIDE) ** 2, channels)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Backbone:
        raise TypeError("pixels are no network")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Returns (N, C·S·S) as `pooled`."""
        return Features((F.adaptive_avg_pool2d(x, PIXEL_SIDE) if x.shape[-1] > PIXEL_SIDE else x).flatten(1))
