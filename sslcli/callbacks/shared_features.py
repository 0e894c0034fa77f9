"""Labeled images for the monitors of a run, and their features: read and computed once for all monitors."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.contracts.data import Dataset, Part
from sslcli.data.subset import Subset, stratified_choice
from sslcli.evaluation.extraction import extract_features, load_images

log = logging.getLogger(__name__)

#: Up to this many bytes of a part are kept in memory, 10,000 images of 113 pixels; more are read for each measurement.
KEPT = 384 << 20


class SharedImages:
    """Some images of a labeled dataset, the same share of each class.

    They are kept as uint8 on the CPU up to 384 MiB, pinned for a GPU. More (10,000 of 224 pixels would be 1.5 GB) are
    decoded again for each measurement, which takes the memory of two batches.

    Attributes:
        data: the images; without the unreadable ones if they are kept.
        images: uint8 (N, C, S, S), or None where they are not kept.
        labels: (N,) on the device, of `data`.
        latest: a step, and what `shared_features` returned after it.
    """

    def __init__(self, data: Dataset, limit: int | None, image_size: int, device: torch.device) -> None:
        assert data.labels is not None
        self.data = Subset(data, stratified_choice(data.labels, limit))
        self.images: Tensor | None = None
        self.latest: tuple[int, tuple[Tensor, Tensor]] | None = None
        if len(self.data) * data.info.channels * image_size**2 <= KEPT:
            self.images, kept = load_images(self.data, image_size)
            self.data = Subset(self.data, kept)
            if device.type == "cuda":
                self.images = self.images.pin_memory()
        assert self.data.labels is not None
        self.labels = self.data.labels.to(device)

    def features(self, backbone: nn.Module, context: RunContext) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) float32 and labels (N,), both on the device; the backbone stays as it was."""
        found = extract_features(backbone, self.data if self.images is None else self.images, context)
        return found.features, self.labels if found.labels is None else found.labels


#: What the monitors of a run share; freed with the run.
_SHARED: WeakKeyDictionary[RunContext, dict[tuple[Part, int | None], SharedImages]] = WeakKeyDictionary()


def shared_images(context: RunContext, part: Part, limit: int | None) -> SharedImages | None:
    """Returns labeled images of a part, read once for all monitors with this limit; None where there are none."""
    shared, key = _SHARED.setdefault(context, {}), (part, limit)
    if key not in shared:
        data = context.labeled(part)
        if data is None or data.labels is None:
            return None
        shared[key] = SharedImages(data, limit, context.image_size, context.device)
    return shared[key]


def shared_features(context: RunContext, part: Part, limit: int | None) -> tuple[Tensor, Tensor]:
    """Returns features (N, D) of the encoder as it is after this step, computed once for all monitors, and labels (N,),
    of images that there are."""
    images, step = shared_images(context, part, limit), context.progress.step
    assert images is not None
    if images.latest is None or images.latest[0] != step:
        images.latest = step, images.features(context.encoder(), context)
    return images.latest[1]


class EpochMonitor(Callback):
    """Measures every `every_epochs` epochs and at the end, on the main process, never twice at a step.

    Its options have `every_epochs`.
    """

    options: Any

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.measured_step = -1
        self.ready = False

    @abstractmethod
    def measure(self, context: RunContext) -> tuple[dict[str, float], str]:
        """Returns what to log (nothing if nothing can be measured), and the line to show, without `after … epochs`."""

    def on_epoch(self, context: RunContext) -> None:
        epoch = context.progress.step // context.progress.steps_per_epoch
        if epoch % self.options.every_epochs == 0:
            self._report(context)

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        if outcome == "done":
            self._report(context)
        self.ready = False

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {"measured_step": self.measured_step}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        self.measured_step = int(state["measured_step"])

    def _report(self, context: RunContext) -> None:
        if not self.ready or not context.is_main or self.measured_step == context.progress.made:
            return
        self.measured_step = context.progress.made
        metrics, text = self.measure(context)
        if metrics:
            context.log(metrics)
            epoch = context.progress.epoch
            log.info(f"{text} after {round(epoch, 2):g} epoch{'' if epoch == 1 else 's'}")
