"""Warns during training when a representation collapses: all features alike, or along one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.options import FREE, Options

log = logging.getLogger(__name__)


class CollapseOptions(Options):
    """Thresholds below which features count as collapsed."""

    std: float = Field(default=0.02, ge=0, json_schema_extra=FREE)
    """Std of the L2-normalized features × √D (1: even over the sphere) below which they are all alike."""
    rank: float = Field(default=1.5, ge=1, json_schema_extra=FREE)
    """Effective rank below which they vary along one line only."""
    lines: int = Field(default=2, ge=1, json_schema_extra=FREE)
    """Number of consecutive log lines below a threshold before the warning."""


class CollapseWatch(Callback):
    """Reads `feature_std` and `feature_rank` of each log line; warns once, and again after a recovery."""

    Options = CollapseOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.bad_lines = 0

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        std, rank = record.get("feature_std"), record.get("feature_rank")
        if std is None or rank is None:
            return
        collapsed = std < self.options.std or rank < self.options.rank
        self.bad_lines = self.bad_lines + 1 if collapsed else 0
        if self.bad_lines == self.options.lines:
            log.warning(
                f"the representation is collapsing at step {record['step']}: std of the normalized features "
                f"{std:.4f} (1 = spread evenly), effective rank {rank:.2f}; try a smaller optimizer.lr, a longer "
                "warm-up, or stronger views"
            )
