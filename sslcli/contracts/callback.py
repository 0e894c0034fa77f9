"""Contract of the group `sslcli.callbacks`: code that observes a run without influencing it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Reading:
    """How far a run is, read after a step without a wait for the device. Counts are those of this session.

    Attributes:
        step: optimizer steps of the run.
        lr: learning rate of the last one.
        images: over all processes.
        waited: seconds in which this process waited for images.
        paused: seconds of monitors and saving between the steps.
        loss: returns the mean since the last log line, over this process's images; None as long as it has not arrived.
    """

    step: int
    lr: float
    images: int
    waited: float
    paused: float
    loss: Callable[[], float | None]


class RunContext(ABC):
    """The run as a callback sees it.

    Attributes:
        directory: the run directory.
        device: the training device.
        seed: the run's seed.
        progress: how many steps are done.
        last_step: the step after which this session ends (`training.max_steps`, or the run's last).
        is_main: True on the one process that writes.
        image_size: side in pixels of the images to pass to the backbone.
        classes: number of classes of the training images; None without labels.
        step_features: (n, D) on the device, detached: `Step.features` of the last step, of this process's share of the
            batch in its order. None before the first step, and if the method returns none.
        step_labels: (n,) int64 on the device, the labels of the same images; None without labels. Both are valid
            during `on_step`; copy them to keep them.
        chance_loss: see `Method.chance_loss`.
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
    chance_loss: float | None = None

    @abstractmethod
    def encoder(self) -> Backbone:
        """Returns the backbone in training. Restore its mode after use, and change none of its buffers."""

    @abstractmethod
    def labeled(self, part: Part) -> Dataset | None:
        """Returns labeled images to fit a probe on (`train`) or to test it on (`eval`); None without labels."""

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Turns uint8 images (N, C, H, W) on the device into the backbone's float input."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a line to `metrics.jsonl` (with `step` and `epoch`) and calls every callback's `on_log`.

        Args:
            metrics: values to log.
            step: the number of steps after which they were true, if not the current one.
        """

    #: Why the run is to end after this step; None while it goes on.
    stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ends the run after this step as if it were its last: saved, with a backbone file, exit code 0.

        Any process may ask, the main one alone too; the first reason counts. A resumed run goes on from there.

        Args:
            reason: shown to the user: `knn_top1 has not risen for 5 measurements`.
        """
        self.stop_reason = self.stop_reason or reason

    def reading(self) -> Reading | None:
        """Returns the run's values at any step, also between two log lines; costs a copy of one number, and never waits
        for the device. None where there are none: before a step, and right after a log line."""
        return None

    def tell(self, text: str) -> None:
        """Shows a line to the user, above the progress bar, only once even with several processes."""
        log.info(text)


class Callback:
    """Observes a run. Every hook is optional; an error in a hook ends the run.

    All hooks run on every process (`on_record` and `on_log` on the main one only).
    """

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any = None) -> None:
        """Args:
        options: an instance of `Options`.
        """
        self.options = options

    def on_start(self, context: RunContext) -> None:
        """Before the first step of this session; in a resumed run `context.progress.step` is above 0."""

    def on_first_step(self, context: RunContext) -> None:
        """After the first step of this session and its `on_step`: for what takes long and should not delay the
        step that shows that a run works. May wait for the device; the time does not count in the rates."""

    def on_step(self, context: RunContext) -> None:
        """After every step; must not wait for the device."""

    def on_record(self, context: RunContext) -> Mapping[str, float]:
        """Before each of the run's own log lines (`training.log_every`): returns values to add to it.

        May wait for the device.
        """
        return {}

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        """After every line of `metrics.jsonl`.

        Args:
            context: the run.
            record: the line: `step`, `epoch`, and either what the run logs (`loss`, `lr`, `images_per_second`,
                `data_wait`, the method's metrics, …) or what a callback passed to `context.log`.
        """

    def on_epoch(self, context: RunContext) -> None:
        """After the last step of every epoch, its `on_step` and its log line."""

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        """When the run ends in any way, even if `on_start` of a callback has failed.

        Args:
            context: the run.
            outcome: `done`, `interrupted` (by a signal; the run is saved) or `failed`.
        """

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        """Returns the state that must survive a restart; checkpoints keep it as `callback.NAME.KEY`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        """Restores what `state_dict` returned, before `on_start`."""
