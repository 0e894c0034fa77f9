"""What every trained probe does: try the settings on held-out training images, choose, train again, test once.

The order is the protocol's: all choices are settled on training images, and reported by `Subject.decide`, before
anything of the test images is read.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, LinearClassifier, Subject
from sslcli.data.subset import stratified_split
from sslcli.evaluation.scores import summarize
from sslcli.evaluation.subject import require_parts

from .training import finite

log = logging.getLogger(__name__)

CHOICE = "highest top-1 on the held-out training images; ties are broken by the lowest loss there"


@dataclass
class Trial:
    """A trained classifier.

    Attributes:
        settings: what it was trained with, by the names of the options to choose from.
        model: the classifier, for `Probe.test`.
        top1: accuracy on the held-out images; NaN without any.
        loss: mean cross-entropy there; not finite if training diverged.
        curve: a row for each epoch.
        measured: further entries of its row in the sweep.
        details: further details of the result, if it is the final one.
    """

    settings: dict[str, Any]
    model: Any
    top1: float = math.nan
    loss: float = math.nan
    curve: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Returns its row in the sweep."""
        held_out = {"held_out_top1": finite(self.top1), "held_out_loss": finite(self.loss)}
        return {**self.settings, **held_out, **self.measured}


class Probe(Evaluator):
    """A classifier trained on the labeled images; its options have `held_out` and `top`, and may have `refit`.

    Attributes:
        name: as it is registered, for messages and the protocol.
        remedy: what to do if no image can be held out.
        subject: what is evaluated; this and the following are set while it is.
        classes: C.
        labels: (N,) int64, of the images to train on.
        candidates: the settings to choose from, at least one.
    """

    name: ClassVar[str]
    remedy: ClassVar[str] = "use more images"
    subject: Subject
    classes: int
    labels: Tensor
    candidates: Sequence[dict[str, Any]]

    @abstractmethod
    def prepare(self) -> None:
        """Sets `labels` and `candidates` for a subject whose labeled parts have been checked."""

    @abstractmethod
    def train(
        self, candidates: Sequence[dict[str, Any]], images: Tensor, held_out: Tensor | None, start: Trial | None
    ) -> list[Trial]:
        """Trains a classifier with each of the settings.

        Args:
            candidates: the settings.
            images: (M,) int64, indices of the images to train on.
            held_out: indices of those to measure on; None for the final training.
            start: for the final training the trial that was chosen, if there was a choice.
        """

    @abstractmethod
    def test(self, trial: Trial) -> tuple[Tensor, Tensor]:
        """Returns scores (N, C) and labels (N,) of the test images, the part `eval`."""

    def classifier(self, trial: Trial) -> LinearClassifier | None:
        """Returns what a trial trained, to be kept for use; None, the default, if it is not a linear layer."""
        return None

    @abstractmethod
    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        """Returns what the protocol says of a final classifier, trained on so many images."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        """Returns the result of the chosen classifier on the test images.

        Raises:
            UserError: no two labeled parts, too few images to hold one out, or training diverged.
        """
        own = copy.copy(self)  # what it computes for the subject is freed with it
        own.subject, own.classes = subject, require_parts(subject)
        own.prepare()
        return own._evaluate()

    def _evaluate(self) -> EvaluationResult:
        subject = self.subject
        candidates, refit = self.candidates, getattr(self.options, "refit", True)
        images = everything = torch.arange(len(self.labels))
        held_out, final = images[:0], None
        details: dict[str, Any] = {"sweep": []}
        if len(candidates) > 1 or not refit:
            images, held_out = stratified_split(self.labels, self.options.held_out, subject.seed)
            if len(held_out) == 0:
                raise UserError(f"{self.name}: no class has two images, so none can be held out; {self.remedy}")
            log.info(f"{self.name}: {len(candidates)} classifiers on {len(images):,} images")
            trials = self.train(candidates, images, held_out, None)
            finished = [trial for trial in trials if math.isfinite(trial.loss)]
            if not finished:
                raise UserError(f"{self.name}: every learning rate diverged; give lower ones with lr=[…]")
            final = max(finished, key=lambda trial: (trial.top1, -trial.loss))
            if not refit:
                log.info(f"{self.name}: {_in_words(final.settings)}")
            details = {"sweep": [trial.row() for trial in trials], "held_out_top1": final.top1}
            details |= {"held_out_images": len(held_out)} | ({"curve": final.curve} if final.curve else {})
        if final is None or refit:
            images = everything
            settings = final.settings if final is not None else candidates[0]
            log.info(f"{self.name}: {_in_words(settings)}; retraining on all {len(images):,}")
            (final,) = self.train([settings], images, None, final)
            if final.curve:
                details["final_curve" if "curve" in details else "curve"] = final.curve
                if final.curve[-1]["loss"] is None:
                    lr = final.settings["lr"]
                    raise UserError(f"{self.name}: training with lr {lr:g} diverged; give a lower one with lr=…")
        subject.decide(final.settings if len(candidates) > 1 else {})
        scores, labels = self.test(final)
        metrics, by_class = summarize(scores, labels, self.options.top, subject.dataset("eval").info.classes or ())
        protocol = {
            **subject.describe(),
            "evaluator": self.name,
            **self.describe(final, len(images)),
            "choice": CHOICE if len(candidates) > 1 else "none",
            "after_choice": "trained again on all training images" if refit else "tested as it was chosen",
            "held_out": self.options.held_out,
            "held_out_images": len(held_out),
            "fit_images": len(images),
            "train_images": len(self.labels),
            "eval_images": len(labels),
            **{f"chosen_{name}": value for name, value in final.settings.items()},
        }
        details = {"chosen": final.settings, **details, **final.details, **by_class}
        return EvaluationResult(metrics, protocol, details, classifier=self.classifier(final))


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool) else f'{value:g}'}" for name, value in settings.items()
    )
