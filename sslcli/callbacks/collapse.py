"""Warns during training when a representation collapses, in one of several ways, or when nothing is learned."""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.options import FREE, Options

log = logging.getLogger(__name__)

#: A loss is judged by so many log lines in a row, once so much of a run is done: some begin at that of chance.
LOSSES, SHARE = 10, 0.05
#: A teacher with less than this share of the largest entropy is sure; with embeddings as similar as this, of one thing.
SURE, SIMILAR = 0.25, 0.75
#: A matrix that has changed less, relative to its length, has not moved; so many numbers of each are looked at.
UNMOVED, SAMPLE = 1e-4, 4096


class CollapseOptions(Options):
    """Thresholds below which features count as collapsed, and from which on a loss counts as stuck."""

    std: float = Field(default=0.02, ge=0, json_schema_extra=FREE)
    """Std of the L2-normalized features × √D (1: even over the sphere) below which they are all alike."""
    rank: float = Field(default=1.5, ge=1, json_schema_extra=FREE)
    """Effective rank (of the covariance's eigenvalues) below which they vary along one line only."""
    cosine: float = Field(default=0.99, ge=0, le=1, json_schema_extra=FREE)
    """Mean cosine of the embeddings of different images (`neg_cos`) above which they are all alike, whatever the
    features are."""
    lines: int = Field(default=2, ge=1, json_schema_extra=FREE)
    """Number of consecutive measurements below a threshold before the warning: each log line has a std, every tenth an
    effective rank."""
    chance: float = Field(default=0.98, ge=0, json_schema_extra=FREE)
    """Share of the loss of outputs that are alike for all images, log n, from which on a loss is stuck."""
    steps: int = Field(default=100, ge=0, json_schema_extra=FREE)
    """Steps of a run, and at least a twentieth of it, in which embeddings may be alike and a loss stuck."""


class CollapseWatch(Callback):
    """Warns when the features collapse, or nothing is learned.

    Reads `feature_std`, `feature_rank`, `neg_cos`, `teacher_entropy` and `loss` where a log line has them, and looks
    once whether the weights have moved; says once of each of the two what is wrong, and what to try."""

    Options = CollapseOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        #: Consecutive lines beyond the threshold, and the latest value.
        self.bad_lines = {"feature_std": 0, "feature_rank": 0, "neg_cos": 0, "teacher_entropy": 0}
        self.latest: dict[str, float] = {}
        self.losses: deque[float] = deque(maxlen=LOSSES)
        self.lr = 0.0  #: of the last line
        self.begun: list[Tensor] = []  #: some of the encoder's weights before the first step
        self.warned: set[str] = set()

    def on_start(self, context: RunContext) -> None:
        if context.is_main and context.progress.made == 0:
            self.begun = _sample(context)

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        options, progress, chance = self.options, context.progress, context.chance_loss
        # A learning rate that rises is that of the warm-up.
        rising, self.lr = record.get("lr", self.lr) > self.lr, record.get("lr", self.lr)
        early = progress.step < max(options.steps, SHARE * progress.total_steps) or rising
        self.latest |= {name: record[name] for name in self.bad_lines if name in record}
        similar = 0.0 if early else record.get("neg_cos", 0.0)
        self._count("feature_std", record, record.get("feature_std", 0) < options.std)
        self._count("feature_rank", record, record.get("feature_rank", 0) < options.rank)
        self._count("neg_cos", record, similar > options.cosine)
        sure = chance is not None and record.get("teacher_entropy", chance) < SURE * chance
        self._count("teacher_entropy", record, sure and similar > SIMILAR)
        if max(self.bad_lines.values()) >= options.lines and "collapse" not in self.warned:
            self.warned.add("collapse")
            log.warning(f"the representation is collapsing at step {record['step']}: {self._collapse()}")
        if "loss" in record and not early:
            self.losses.append(record["loss"])
            if "learning" not in self.warned and (found := self._stuck(context)):
                self.warned.add("learning")
                log.warning(found)

    def _count(self, name: str, record: Mapping[str, float | int], bad: bool) -> None:
        if name in record:
            self.bad_lines[name] = self.bad_lines[name] + 1 if bad else 0

    def _collapse(self) -> str:
        std, rank, cosine, entropy = (self.latest.get(name) for name in self.bad_lines)
        numbers = [f"std of the normalized features {std:.4f} (1 = spread evenly)"] if std is not None else []
        numbers += [f"effective rank {rank:.2f} (1 = one line)"] if rank is not None else []
        worst = next(name for name, count in self.bad_lines.items() if count >= self.options.lines)
        what = "the features of all images are nearly the same"
        if worst == "feature_rank":
            what = "all features lie along one line"
        elif worst == "neg_cos":
            numbers += [f"mean cosine of the embeddings of different images {cosine:.4f}"]
            what = "the embeddings of all images are nearly the same"
        elif worst == "teacher_entropy":
            numbers += [f"mean cosine of the embeddings of different images {cosine:.2f}, entropy {entropy:.2f}"]
            what = "the teacher names one prototype for all images"
        return (
            f"{', '.join(numbers)}: {what}; if that lasts, try a smaller optimizer.lr, a longer "
            "schedule.warmup_epochs, a larger training.batch_size, or stronger views; in a method of your own, check "
            "what should prevent it (predictor and stop-gradient, negatives, centering, variance)"
        )

    def _stuck(self, context: RunContext) -> str | None:
        """Returns how it shows that nothing is learned."""
        chance, step = context.chance_loss, context.progress.made
        if self.begun:
            pairs = zip(_sample(context), self.begun, strict=True)
            changes = torch.stack([(now - begun).norm() / begun.norm().clamp_min(1e-12) for now, begun in pairs])
            self.begun = []  # once is enough
            if float(changes.max()) < UNMOVED:
                return (
                    f"the encoder's weights at step {step} are those of the start: nothing has moved; try a larger "
                    "optimizer.lr, and check what is frozen"
                )
        if not chance or len(self.losses) < LOSSES:
            return None
        least, alike = min(self.losses), f"{chance:.4g}, the loss of outputs that are alike for all images"
        if statistics.median(self.losses) > 2 * chance and least >= chance:
            return (
                f"the loss at step {step}, {self.losses[-1]:.4g}, is far above {alike}: the temperature is too small, "
                "or optimizer.lr too large"
            )
        if least >= self.options.chance * chance:
            return (
                f"the loss is stuck at step {step}: {self.losses[-1]:.4g} is not clearly below {alike}; if that lasts, "
                "try a smaller temperature (of swav epsilon, of dino teacher_temperature), or another optimizer.lr"
            )
        return None


def _sample(context: RunContext) -> list[Tensor]:
    """Some weights of each of the encoder's trained matrices, by which one sees whether they move: copies."""
    weights = [parameter for parameter in context.encoder().parameters() if parameter.ndim >= 2]
    trained = [parameter for parameter in weights if parameter.requires_grad] or weights  # a teacher's are not
    return [each.detach().flatten()[:SAMPLE].float().clone() for each in trained]
