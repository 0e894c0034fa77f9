"""Plugins that fail in some way, and parts that make a test exact; for the fixture `odd_plugins`."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn

from sslcli import distributed
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.method import Batch, Method, MethodOptions, Progress, RunInfo, Step
from sslcli.contracts.options import Options


class FailingOptions(MethodOptions):
    bad_step: int = 3
    """The step whose loss is NaN."""


class NanMethod(Method):
    """Has a loss of NaN in one step."""

    Options = FailingOptions
    count: Tensor

    def __init__(self, backbone: Backbone, options: Any, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recipe(cls, options: Any, image_size: int, spec: object) -> dict[str, Any]:
        return {"preset": "simclr"}

    def forward(self, batch: Batch) -> Step:
        pooled = self.backbone(batch.views[0].image).pooled
        factor = torch.where(self.count + 1 == self.options.bad_step, torch.nan, 1.0)
        return Step(pooled.square().mean() * factor, features=pooled.detach())

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        self.count += 1


class CollapsedMethod(NanMethod):
    """Returns features that are all the same."""

    Options = MethodOptions

    def forward(self, batch: Batch) -> Step:
        pooled = self.backbone(batch.views[0].image).pooled
        return Step(pooled.square().mean(), features=torch.ones_like(pooled))


class MeanMethod(NanMethod):
    """A loss without any coupling between the samples of a batch, and a value that depends on the step."""

    Options = MethodOptions

    def schedules(self) -> dict[str, Any]:
        return {"temperature": lambda step: 0.5 + step}

    def forward(self, batch: Batch) -> Step:
        pooled = self.backbone(batch.views[0].image).pooled
        loss = (pooled - self.backbone(batch.views[1].image).pooled.detach() - 1).square().mean()
        return Step(loss, metrics={"temperature": batch.schedule["temperature"]}, features=pooled.detach())


class TiedMethod(MeanMethod):
    """Registers the same memory under two names."""

    def __init__(self, backbone: Backbone, options: Any, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.register_buffer("one", torch.zeros(4))
        self.register_buffer("two", self.one[:2])


class LabelMethod(MeanMethod):
    """Needs labels."""

    needs_labels = True


class Flat(Backbone):
    """One convolution and dropout: no batch statistics."""

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Flat:
        return cls(channels)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6, channels=channels)
        self.convolution = nn.Conv2d(channels, 6, 3, stride=2)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.dropout(self.convolution(x)).relu().mean(dim=(2, 3)))


class Dropping(Flat):
    """As `Flat`, with dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dropout = nn.Dropout(0.5)


class Picky(Flat):
    """Says in its spec which images it takes, and checks none."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.spec = BackboneSpec(6, channels, minimum_size=16, size_multiple=8)


class SignalOptions(Options):
    step: int = 5
    number: int = signal.SIGINT


class Signaler(Callback):
    """Sends its own process a signal after a step."""

    Options = SignalOptions

    def on_step(self, context: RunContext) -> None:
        if context.progress.step == self.options.step:
            os.kill(os.getpid(), self.options.number)


class StopOptions(Options):
    step: int = 3
    rank: int = 0


class Stopper(Callback):
    """Ends the run after a step, on one process alone."""

    Options = StopOptions

    def on_step(self, context: RunContext) -> None:
        if context.progress.step == self.options.step and distributed.rank() == self.options.rank:
            context.stop(f"process {self.options.rank} has seen enough")


class Counter(Callback):
    """Keeps state of its own: a number and a tensor."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.steps = 0
        self.sums = torch.zeros(2)

    def on_step(self, context: RunContext) -> None:
        self.steps += 1
        self.sums += torch.tensor([1.0, context.progress.step])

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {"steps": self.steps, "sums": self.sums}

    def load_state_dict(self, state: Any) -> None:
        self.steps = int(state["steps"])
        self.sums = state["sums"].clone()
