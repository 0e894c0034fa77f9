"""The best value of a logged metric and its step, in `best.json` in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.options import FREE, Options


class BestOptions(Options):
    """Options of best."""

    metric: str = Field(default="knn_top1", json_schema_extra=FREE)
    """Name of a value in the log lines."""
    mode: Literal["max", "min"] = Field(default="max", json_schema_extra=FREE)
    """Whether the largest or the smallest value is the best."""


class Best(Callback):
    """Writes `best.json` (metric, value, step) whenever a logged metric is better than before, also across restarts."""

    Options = BestOptions
    options: BestOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.value, self.step = 0.0, 0  # no value yet in step 0

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        value = record.get(self.options.metric)
        sign = 1 if self.options.mode == "max" else -1
        if value is None or (self.step and sign * value <= sign * self.value):
            return
        self.value, self.step = float(value), int(record["step"])
        best = {"metric": self.options.metric, "value": self.value, "step": self.step}
        (context.directory / "best.json").write_text(json.dumps(best) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        self.value, self.step = float(state["value"]), int(state["step"])
