"""The run as callbacks see it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from sslcli import distributed
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.callback import Callback, Outcome, Reading, RunContext
from sslcli.contracts.data import Dataset, Part, StreamDataset
from sslcli.contracts.method import Progress
from sslcli.data.subset import limited
from sslcli.runs.directory import RunDirectory

from .setup import Session

log = logging.getLogger(__name__)


class Context(RunContext):
    """Implements `RunContext` on a session and its directory, and calls the callbacks."""

    def __init__(self, session: Session, directory: RunDirectory, tell: Callable[[str], None] | None = None) -> None:
        self.session = session
        self.run_directory = directory
        self.directory: Path = directory.path
        self.device = session.device
        self.seed = session.config.seed
        self.is_main = distributed.rank() == 0
        self.image_size = session.image_size
        dataset, classes = session.dataset, len(session.dataset.info.classes or ())
        if isinstance(dataset, Dataset) and dataset.labels is not None:
            classes = classes or int(dataset.labels.max()) + 1
        self.classes = classes if session.has_labels else None
        self.last_step = session.last_step
        training = session.config.training
        self.chance_loss = session.method.chance_loss(training.batch_size // training.accumulate)
        self.progress = Progress(0, session.info.total_steps, session.info.steps_per_epoch, session.shift)
        self.callbacks: list[Callback] = list(session.callbacks.values())
        self.read: Callable[[], Reading | None] | None = None  # set by the loop
        self._tell = tell or log.info
        self._labeled: dict[Part, Dataset | None] = {}

    def encoder(self) -> Backbone:
        return self.session.method.encoder()

    def labeled(self, part: Part) -> Dataset | None:
        """Opens the labeled images of a part, once; None if the data has no labels."""
        if part not in self._labeled:
            dataset, cls = self.session.dataset, self.session.config.data.cls
            options = cls.labeled(dataset.options, part)
            if options is not None and options != dataset.options:
                dataset = limited(cls.open(options))
            self._labeled[part] = None if options is None or isinstance(dataset, StreamDataset) else dataset
        return self._labeled[part]

    def normalize(self, images: Tensor) -> Tensor:
        return self.session.normalize(images)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.is_main:
            return
        at = self.progress if step is None else dataclasses.replace(self.progress, step=step)
        record = {"step": at.made, "epoch": round(at.epoch, 4), **metrics}
        self.run_directory.append(record)
        for callback in self.callbacks:
            callback.on_log(self, record)

    def log_line(self, metrics: Mapping[str, float]) -> None:
        """Writes the loop's log line, with the values that the callbacks add."""
        if self.is_main:
            added = {name: value for callback in self.callbacks for name, value in callback.on_record(self).items()}
            self.log({**metrics, **added})

    def reading(self) -> Reading | None:
        return self.read() if self.read is not None and self.is_main else None

    def tell(self, text: str) -> None:
        if self.is_main:
            self._tell(text)

    def start(self) -> None:
        for callback in self.callbacks:
            callback.on_start(self)

    def first_step(self) -> None:
        for callback in self.callbacks:
            callback.on_first_step(self)

    def step(self) -> None:
        for callback in self.callbacks:
            callback.on_step(self)

    def epoch(self) -> None:
        for callback in self.callbacks:
            callback.on_epoch(self)

    @contextmanager
    def ending(self) -> Iterator[list[Outcome]]:
        """Calls `on_end` at the end of the block with the outcome that it appended, or with `failed`."""
        outcome: list[Outcome] = []
        try:
            yield outcome
        finally:
            for callback in self.callbacks:
                callback.on_end(self, outcome[-1] if outcome else "failed")
