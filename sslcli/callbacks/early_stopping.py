"""Ends a run when a logged value has not improved for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.options import FREE, Options


class EarlyStoppingOptions(Options):
    """Which value, and how long it may stay as it is."""

    metric: str = Field(default="knn_top1", json_schema_extra=FREE)
    """Name of the value in `metrics.jsonl`, the run's own or a callback's."""
    mode: Literal["max", "min"] = Field(default="max", json_schema_extra=FREE)
    """Whether a larger or a smaller value is better."""
    patience: int = Field(default=5, ge=1, json_schema_extra=FREE)
    """Number of measurements in a row without an improvement after which the run ends."""
    min_delta: float = Field(default=0.0, ge=0, json_schema_extra=FREE)
    """A change by no more than this is not an improvement."""


class EarlyStopping(Callback):
    """Ends the run when a value has not improved for a while.
    Watches one value of the log lines; its count goes on in a resumed run."""

    Options = EarlyStoppingOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.best: float | None = None
        self.without = 0

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        options = self.options
        if options.metric not in record:
            return
        value = record[options.metric]
        gain = None if self.best is None else (value - self.best) * (1 if options.mode == "max" else -1)
        if gain is None or gain > options.min_delta:
            self.best, self.without = value, 0
            return
        self.without += 1
        if self.without >= options.patience:
            verb = "risen above" if options.mode == "max" else "fallen below"
            times = f"{self.without} measurement{'s' * (self.without > 1)}"
            context.stop(f"{options.metric} has not {verb} {self.best:.4g} for {times}")

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {} if self.best is None else {"best": self.best, "without": self.without}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        if state:
            self.best, self.without = float(state["best"]), int(state["without"])
