"""The callback `knn`: kNN accuracy of the encoder while it is being trained, beside that of raw pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..contracts.callback import Callback, Outcome, RunContext
from ..contracts.data import Dataset
from ..contracts.options import FREE, Options
from ..data.subset import stratified_choice
from .features import extract_features, load_images
from .knn import knn_predict
from .scores import accuracy
from .subject import share_images

BATCH = 256
#: Raw pixels are compared at this side at most; more of them do not make the comparison fairer, only dearer.
PIXEL_SIDE = 32


class KNNMonitorOptions(Options):
    every_epochs: int = Field(default=10, ge=1, json_schema_extra=FREE)
    """Measure after every so many epochs, and at the end."""
    k: int = Field(default=20, ge=1, json_schema_extra=FREE)
    """How many neighbours vote."""
    temperature: float = Field(default=0.07, gt=0, json_schema_extra=FREE)
    """τ of the weights exp(cosine / τ)."""
    limit_train: int | None = Field(default=10_000, ge=1, json_schema_extra=FREE)
    """How many labelled images to search for neighbours, the same share of each class."""
    limit_eval: int | None = Field(default=2_000, ge=1, json_schema_extra=FREE)
    """How many images to judge."""
    pixels: bool = Field(default=True, json_schema_extra=FREE)
    """Also tell at the start what raw pixels reach."""


class KNNMonitor(Callback):
    """Logs `knn_top1`: a number to watch; `ssl eval --method knn` gives the one to report."""

    Options = KNNMonitorOptions
    options: KNNMonitorOptions

    def __init__(self, options: KNNMonitorOptions) -> None:
        super().__init__(options)
        self.measured_step = -1
        self._parts: tuple[_Labelled, _Labelled] | None = None

    def on_start(self, context: RunContext) -> None:
        if not context.is_main:
            return
        self._parts = self._read(context)
        if self._parts is None or context.progress.step > 0:
            return
        bank, judged = self._parts
        texts, metrics = [], {}
        if self.options.pixels:
            pixels = [_pixels(part.images, context) for part in self._parts]
            metrics["knn_top1_pixels"] = self._top1(pixels[0], pixels[1], context.device)
            texts.append(f"raw pixels {metrics['knn_top1_pixels']:.1%}")
        metrics["knn_top1"] = self._measure(context)
        texts.append(f"the encoder before training {metrics['knn_top1']:.1%}")
        context.log(metrics)
        count = f"{len(judged.labels):,} images among {len(bank.labels):,}, k {self.options.k}"
        context.tell(f"kNN top-1: {', '.join(texts)} ({count})")

    def on_epoch(self, context: RunContext) -> None:
        epoch = context.progress.step // context.progress.steps_per_epoch
        if epoch % self.options.every_epochs == 0:
            self._report(context)

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if outcome == "done":
            self._report(context)
        self._parts = None

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {"measured_step": self.measured_step}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        self.measured_step = int(state["measured_step"])

    def _report(self, context: RunContext) -> None:
        if self._parts is None or self.measured_step == context.progress.step:
            return
        top1 = self._measure(context)
        context.log({"knn_top1": top1})
        context.tell(f"kNN top-1 {top1:.1%} after {_epochs(context.progress.epoch)}")

    def _read(self, context: RunContext) -> tuple[_Labelled, _Labelled] | None:
        """Both labelled parts as uint8 in memory; None, and a line that says why, where there is nothing to measure."""
        train, judged = context.labelled("train"), context.labelled("eval")
        if train is None or judged is None or train.labels is None or judged.labels is None:
            context.tell("kNN monitor: off, the data have no labels")
            return None
        if share_images(train, judged):
            context.tell("kNN monitor: off, it would search the images that it judges")
            return None
        self._classes = len(train.info.classes or ()) or int(max(train.labels.max(), judged.labels.max())) + 1
        limits = (self.options.limit_train, self.options.limit_eval)
        first, second = (
            _Labelled(data, data.labels, limit, context.image_size)
            for data, limit in zip((train, judged), limits, strict=True)
            if data.labels is not None
        )
        return first, second

    def _measure(self, context: RunContext) -> float:
        assert self._parts is not None
        self.measured_step = context.progress.step
        features = [
            extract_features(
                context.encoder(),
                part.images,
                image_size=context.image_size,
                normalise=context.normalise,
                device=context.device,
                batch_size=BATCH,
            ).features
            for part in self._parts
        ]
        return self._top1(features[0], features[1], context.device)

    def _top1(self, bank: Tensor, features: Tensor, device: torch.device) -> float:
        assert self._parts is not None
        bank_labels, labels = (part.labels.to(device) for part in self._parts)
        with torch.no_grad():
            scores = knn_predict(bank, bank_labels, features, self._classes, self.options.k, self.options.temperature)
            return accuracy(scores, labels)


class _Labelled:
    """A part's images, uint8 on the CPU, and their labels."""

    def __init__(self, data: Dataset, labels: Tensor, limit: int | None, image_size: int) -> None:
        self.images, places = load_images(data, image_size, stratified_choice(labels, limit))
        self.labels = labels[places]


def _pixels(images: Tensor, context: RunContext) -> Tensor:
    """Normalised pixels, (N, D) on the device."""
    rows = []
    for block in torch.split(images, BATCH):
        pixels = context.normalise(block.to(context.device)).float()
        if pixels.shape[-1] > PIXEL_SIDE:
            pixels = F.adaptive_avg_pool2d(pixels, PIXEL_SIDE)
        rows.append(pixels.flatten(1))
    return torch.cat(rows)


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"
