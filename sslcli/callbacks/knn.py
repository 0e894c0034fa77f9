"""The callback `knn`: kNN accuracy of the encoder during training, with that of raw pixels for comparison."""

from __future__ import annotations

import copy
import logging

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.callback import RunContext
from sslcli.contracts.data import Part
from sslcli.contracts.options import FREE, Options
from sslcli.evaluation.scores import accuracy
from sslcli.evaluation.subject import same_images
from sslcli.evaluators.knn import nearest, vote

from .shared_features import EpochMonitor, shared_features, shared_images

log = logging.getLogger(__name__)

#: Raw pixels are compared at this side at most; more of them cost more and do not make the comparison fairer.
PIXEL_SIDE = 32


class KNNMonitorOptions(Options):
    every_epochs: int = Field(default=10, ge=1, json_schema_extra=FREE)
    """Measure every this many epochs, and at the end."""
    k: int = Field(default=20, ge=1, json_schema_extra=FREE)
    """How many neighbors vote."""
    temperature: float = Field(default=0.07, gt=0, json_schema_extra=FREE)
    """τ of the weights exp(cosine / τ)."""
    limit_train: int | None = Field(default=10_000, ge=1, json_schema_extra=FREE)
    """Number of labeled images to search for neighbors, stratified by class. Up to 384 MiB of them are kept in
    memory; more (above 113 pixels with this default) are read again for each measurement."""
    limit_eval: int | None = Field(default=2_000, ge=1, json_schema_extra=FREE)
    """How many images to classify, the same fraction of each class."""
    pixels: bool = Field(default=True, json_schema_extra=FREE)
    """Also report the accuracy of raw pixels at the start."""


class KNNMonitor(EpochMonitor):
    """kNN accuracy on held-out images while the run trains.
    Logs `knn_top1`, for monitoring only: report the result of `ssl eval --method knn`. It takes 2.2% of the
    time of the training steps (the online probe 0.6%), and less with more training images."""

    Options = KNNMonitorOptions
    options: KNNMonitorOptions

    _untrained: Backbone | None = None

    def on_start(self, context: RunContext) -> None:
        train, test = context.labeled("train"), context.labeled("eval")
        if train is None or train.labels is None:
            one_part = "all labeled images are in one part: there are none to test on"
            reason = "the data has no labels to evaluate on" if context.classes is None else one_part
            log.info(f"kNN monitor: off, {reason}")
        elif test is None or test.labels is None:
            log.info("kNN monitor: off, there are no labeled test images")
        elif same_images(train, test):
            log.info("kNN monitor: off, the training and the test images are the same")
        else:
            self.ready = True
            self._classes = len(train.info.classes or ()) or int(max(train.labels.max(), test.labels.max())) + 1
            if context.progress.made == 0:
                # Not on the device: the first step must not need more memory than the others.
                self._untrained = copy.deepcopy(context.encoder()).cpu()

    def on_first_step(self, context: RunContext) -> None:
        """Measures pixels and the encoder as it was before the first step."""
        if self._untrained is None:
            return
        untrained, self._untrained = self._untrained.to(context.device), None
        options = self.options
        bank = shared_images(context, "train", options.limit_train)
        test = shared_images(context, "eval", options.limit_eval)
        assert bank is not None
        assert test is not None
        pixels = [_Pixels()] if options.pixels else []
        features = [(bank.features(of, context), test.features(of, context)) for of in (*pixels, untrained)]
        self.measured_step = max(self.measured_step, 0)
        if not context.is_main:
            return
        texts, metrics = [], {}
        if options.pixels:
            metrics["knn_top1_pixels"] = self._top1(*features[0])
            texts.append(f"raw pixels {metrics['knn_top1_pixels']:.1%}")
        metrics["knn_top1"] = self._top1(*features[-1])
        texts.append(f"encoder before training {metrics['knn_top1']:.1%}")
        context.log(metrics, step=0)
        counts = f"{len(test.data):,} test images, {len(bank.data):,} training images"
        log.info(f"kNN top-1: {', '.join(texts)} ({counts}, k={options.k})")

    def needs(self) -> list[tuple[Part, int | None]]:
        return [("train", self.options.limit_train), ("eval", self.options.limit_eval)]

    def measure(self, context: RunContext) -> tuple[dict[str, float], str]:
        options = self.options
        bank = shared_features(context, "train", options.limit_train)
        top1 = self._top1(bank, shared_features(context, "eval", options.limit_eval))
        return {"knn_top1": top1}, f"kNN top-1 {top1:.1%}"

    def _top1(self, bank: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
        with torch.no_grad():
            similarity, index = nearest(bank[0], test[0], self.options.k)
            scores = vote(similarity, bank[1][index], self._classes, self.options.temperature)
        return accuracy(scores, test[1])


class _Pixels(nn.Module):
    """The pixels themselves as features, reduced to 32 × 32 where there are more."""

    def forward(self, x: Tensor) -> Features:
        """Returns (N, C·S·S) as `pooled`."""
        return Features((F.adaptive_avg_pool2d(x, PIXEL_SIDE) if x.shape[-1] > PIXEL_SIDE else x).flatten(1))
