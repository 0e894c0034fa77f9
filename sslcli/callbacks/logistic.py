"""The callback `logistic`: logistic regression on the encoder's features during training, fitted on half of a labeled
part and tested on its other half (the protocol of untitled-ai's study of BYOL's batch norm)."""

from __future__ import annotations

import logging

from pydantic import Field

from sslcli.contracts.callback import RunContext
from sslcli.contracts.data import Part
from sslcli.contracts.options import FREE, Options
from sslcli.data.subset import stratified_split
from sslcli.evaluation.scores import accuracy
from sslcli.evaluators.logistic import fit_logistic

from .shared_features import EpochMonitor, shared_features, shared_images

log = logging.getLogger(__name__)


class LogisticMonitorOptions(Options):
    every_epochs: int = Field(default=10, ge=1, json_schema_extra=FREE)
    """Measure every this many epochs, and at the end."""
    part: Part = Field(default="eval", json_schema_extra=FREE)
    """The labeled images to split in half: the test images, or those that probes are trained on (`train`)."""
    limit: int | None = Field(default=10_000, ge=4, json_schema_extra=FREE)
    """Number of them to use, the same fraction of each class. Up to 384 MiB are kept in memory; more are read again for
    each measurement."""
    C: float = Field(default=1.0, gt=0, json_schema_extra=FREE)
    """Inverse strength of the L2 penalty, on the scale of scikit-learn's `C`."""
    standardize: bool = Field(default=True, json_schema_extra=FREE)
    """Divide each feature by its standard deviation first, so that the penalty stays comparable throughout a run."""
    iterations: int = Field(default=100, ge=1, json_schema_extra=FREE)
    """Maximum number of L-BFGS iterations; a monitor need not reach the optimum."""


class LogisticMonitor(EpochMonitor):
    """Accuracy of a logistic regression while the run trains.
    Logs `logistic_top1`, measured on images that probes are tested on, for monitoring only: report the result
    of `ssl eval --method logistic`. It takes 2.8% of the time of the training steps (the kNN monitor 2.2%), and is
    off by default."""

    Options = LogisticMonitorOptions
    options: LogisticMonitorOptions

    def on_start(self, context: RunContext) -> None:
        self.ready = shared_images(context, self.options.part, self.options.limit) is not None
        if not self.ready:
            log.info(f"logistic monitor: off, there are no labeled images for the part {self.options.part!r}")

    def needs(self) -> list[tuple[Part, int | None]]:
        return [(self.options.part, self.options.limit)]

    def measure(self, context: RunContext) -> tuple[dict[str, float], str]:
        options = self.options
        features, labels = shared_features(context, options.part, options.limit)
        # At random, the same share of each class: the first half of data that are sorted by class has half the classes.
        fit, test = (half.to(context.device) for half in stratified_split(labels, 0.5, context.seed))
        if not len(test):
            return {}, ""
        classes = int(labels.max()) + 1
        model = fit_logistic(
            features[fit], labels[fit], classes, options.C, standardize=options.standardize,
            iterations=options.iterations, tolerance=1e-4,
        )  # fmt: skip
        top1 = accuracy(model.scores(features[test]), labels[test])
        return {"logistic_top1": top1}, f"logistic top-1 {top1:.1%}"
