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
    """Effective rank (of the covariance's eigenvalues) below which they vary along one line only."""
    lines: int = Field(default=2, ge=1, json_schema_extra=FREE)
    """Number of consecutive measurements below a threshold before the warning: each log line has a std, every tenth an
    effective rank."""


class CollapseWatch(Callback):
    """Warns when the features collapse.

    Reads `feature_std` and, where it is there, `feature_rank`; says once what is wrong, and what to try."""

    Options = CollapseOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        #: Consecutive lines below the threshold, and the latest value.
        self.bad_lines = {"feature_std": 0, "feature_rank": 0}
        self.latest: dict[str, float] = {}
        self.warned = False

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        for name, threshold in (("feature_std", self.options.std), ("feature_rank", self.options.rank)):
            if name in record:
                self.latest[name] = record[name]
                self.bad_lines[name] = self.bad_lines[name] + 1 if record[name] < threshold else 0
        worst = max(self.bad_lines.values())
        if worst >= self.options.lines and not self.warned:
            self.warned = True
            std, rank = (self.latest.get(name) for name in self.bad_lines)
            numbers = [f"std of the normalized features {std:.4f} (1 = spread evenly)"] if std is not None else []
            numbers += [f"effective rank {rank:.2f} (1 = one line)"] if rank is not None else []
            alike = self.bad_lines["feature_std"] >= self.options.lines
            what = "the features of all images are nearly the same" if alike else "all features lie along one line"
            log.warning(
                f"the representation is collapsing at step {record['step']}: {', '.join(numbers)}: {what}; if "
                "that lasts, try a smaller optimizer.lr, a longer schedule.warmup_epochs, a larger "
                "training.batch_size, or stronger views"
            )
