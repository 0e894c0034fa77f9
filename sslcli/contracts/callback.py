"""Contract of the group `sslcli.callbacks`: what watches a run without taking part in it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .backbone import Backbone
from .data import Dataset, Part
from .method import Progress
from .options import Options

log = logging.getLogger(__name__)

Outcome = Literal["done", "interrupted", "failed"]


class RunContext(ABC):
    """What a callback may see of the run and say to it.

    Attributes:
        directory: the run directory.
        device: the training device.
        seed: the run's seed.
        progress: where the run stands.
        last_step: the step after which this session ends (`training.max_steps`, or the run's last).
        is_main: True on the one process that writes.
        image_size: side of the images to show the backbone.
        classes: how many classes the training images have; None without labels.
        step_features: (n, D), what the last step's features were (`Step.features`), detached, on the device: this
            process's share of the batch, in its order. None before the first step, and where the method gives none.
        step_labels: (n,) int64 on the device, the labels of the same images; None without labels. Both are there in
            `on_step`, to be copied by whoever wants to keep them.
    """

    directory: Path
    device: torch.device
    seed: int
    progress: Progress
    last_step: int
    is_main: bool
    image_size: int
    classes: int | None = None
    step_features: Tensor | None = None
    step_labels: Tensor | None = None

    @abstractmethod
    def encoder(self) -> Backbone:
        """Returns the backbone under training, as it is. Leave it as it was: no update of any buffer, same mode."""

    @abstractmethod
    def labeled(self, part: Part) -> Dataset | None:
        """Returns labeled images to fit or judge a probe on; None where the data have no labels."""

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Turns uint8 images (N, C, H, W) on the device into what the backbone is trained on."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float]) -> None:
        """Writes a line to `metrics.jsonl` (with step and epoch) and tells every callback's `on_log`."""

    def tell(self, text: str) -> None:
        """Shows a line to the user, above the progress bar, once however many processes there are."""
        log.info(text)


class Callback:
    """Watches a run. Every hook may do nothing; errors in a hook end the run."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any = None) -> None:
        self.options = options

    def on_start(self, context: RunContext) -> None:
        """Before the first step; also after a resumption (`context.progress.step` > 0 then)."""

    def on_step(self, context: RunContext) -> None:
        """After every step; must not wait for the device."""

    def on_record(self, context: RunContext) -> Mapping[str, float]:
        """Before the run writes a line of its own (`training.log_every`), on the main process: what to add to it. May
        wait for the device."""
        return {}

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        """After every line of `metrics.jsonl`."""

    def on_epoch(self, context: RunContext) -> None:
        """After the last step of every epoch."""

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        """When the run ends, however it does."""

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        """Returns what must survive a restart; saved as `callback.NAME.KEY`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        """Takes back what `state_dict` returned."""
