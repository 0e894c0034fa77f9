"""Labeled images for the monitors of a run, and their features: read and computed once for all monitors."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sslcli import distributed
from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.contracts.data import Dataset, Part
from sslcli.data.subset import Subset, stratified_choice
from sslcli.evaluation.extraction import ReadBlocks, extract_features, read_blocks
from sslcli.evaluation.sharing import Unreadable, opened_alike

log = logging.getLogger(__name__)

#: Up to this many bytes of a part are kept in memory, 10,000 images of 113 pixels; more are read for each measurement.
KEPT = 384 << 20


class SharedImages:
    """Some images of a labeled dataset, the same share of each class.

    They are kept as uint8 on the CPU up to 384 MiB, pinned for a GPU, by each process its own blocks. More (10,000 of
    224 pixels would be 1.5 GB) are decoded again for each measurement, which takes the memory of two batches. All
    processes make one at the same time.

    Attributes:
        data: the images; without the unreadable ones if they are kept.
        kept: this process's blocks of them, or None where they are not kept.
        labels: (N,) on the device, of `data`.
        latest: a step, and on the main process what `shared_features` returns after it.
    """

    def __init__(self, data: Dataset, limit: int | None, image_size: int, device: torch.device) -> None:
        labels = data.labels
        assert labels is not None
        (self.data,) = opened_alike(lambda: [Subset(data, stratified_choice(labels, limit))])
        self.kept: ReadBlocks | None = None
        self.latest: tuple[int, tuple[Tensor, Tensor]] | None = None
        if len(self.data) * data.info.channels * image_size**2 <= KEPT:
            unreadable = Unreadable(self.data, shared=True)
            blocks, count = list(read_blocks(self.data, image_size, unreadable=unreadable, shared=True)), len(self.data)
            if device.type == "cuda":
                blocks = [(block.pin_memory(), indices) for block, indices in blocks]
            self.kept = ReadBlocks(blocks, count)
            read = distributed.gather_objects(torch.cat([torch.empty(0, dtype=torch.int64), *(i for _, i in blocks)]))
            good = torch.cat(read).sort().values
            unreadable.check_all(count - len(good))
            self.data = Subset(self.data, good)
        assert self.data.labels is not None
        self.labels = self.data.labels.to(device)

    def features(self, backbone: nn.Module, context: RunContext, *, shared: bool = True) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) float32 and labels (N,), both on the device; the backbone stays as it was.

        With `shared` all processes compute them, and the main one gets them; without, any process may call it alone.
        """
        alone = not shared and distributed.is_distributed()
        images = self.data if self.kept is None or alone else self.kept
        found = extract_features(backbone, images, context, shared=shared)
        return found.features, self.labels if found.labels is None else found.labels


#: What the monitors of a run share; freed with the run.
_SHARED: WeakKeyDictionary[RunContext, dict[tuple[Part, int | None], SharedImages]] = WeakKeyDictionary()


def shared_images(context: RunContext, part: Part, limit: int | None) -> SharedImages | None:
    """Returns labeled images of a part, read once for all monitors with this limit; None where there are none.

    Called by all processes at the same time; later calls read nothing, and any process may make them alone."""
    shared, key = _SHARED.setdefault(context, {}), (part, limit)
    if key not in shared:
        data = context.labeled(part)
        if data is None or data.labels is None:
            return None
        shared[key] = SharedImages(data, limit, context.image_size, context.device)
    return shared[key]


def shared_features(
    context: RunContext, part: Part, limit: int | None, *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns features (N, D) of the encoder as it is after this step, computed once for all monitors, and labels (N,),
    of images that there are.

    With `shared` all processes compute them, and the main one gets them. Without, they are there already or this
    process computes them alone."""
    images, step = shared_images(context, part, limit), context.progress.step
    assert images is not None
    if images.latest is None or images.latest[0] != step:
        images.latest = step, images.features(context.encoder(), context, shared=shared)
    return images.latest[1]


class EpochMonitor(Callback):
    """Measures every `every_epochs` epochs and at the end, never twice at a step.

    All processes compute the features that it `needs`, each a share; the main one measures. Its options have
    `every_epochs`. `ready` is the same on all processes.
    """

    options: Any

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.measured_step = -1
        self.ready = False

    def needs(self) -> list[tuple[Part, int | None]]:
        """Returns part and limit of the `shared_features` that `measure` reads; the same on all processes."""
        return []

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
        if not self.ready or self.measured_step == context.progress.made:
            return
        self.measured_step = context.progress.made
        for part, limit in self.needs():
            shared_features(context, part, limit, shared=True)
        if not context.is_main:
            return
        metrics, text = self.measure(context)
        if metrics:
            context.log(metrics)
            epoch = context.progress.epoch
            log.info(f"{text} after {round(epoch, 2):g} epoch{'' if epoch == 1 else 's'}")
