"""The evaluator `linear`: a linear classifier on a frozen backbone, its learning rate chosen on held-out training
images and never on the images that it is judged on."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.data.subset import stratified_split
from sslcli.evaluation.scores import exact_float32
from sslcli.evaluation.subject import labeled_features, require_parts

from ..probes.images import PROBE_TRAIN, ImageOptions
from ..probes.training import ProbeOptions, Rates, Training, as_list, curve_rows, finite, judged
from .augmented import AugmentedFeatures, CachedFeatures, Material
from .heads import Curve, Heads, best_head, judge_heads, train_heads

log = logging.getLogger(__name__)

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
Scalings = Annotated[tuple[bool, ...], BeforeValidator(as_list), Field(min_length=1, max_length=2)]


class LinearOptions(ProbeOptions, ImageOptions):
    """MoCo's published protocol: `protocol=augmented lr=30 standardize=false init=normal schedule=step`."""

    protocol: Literal["features", "augmented"] = "features"
    """features: computed once from each image as it is; augmented: the papers' protocol, a fresh crop and flip of each
    image in each epoch through the frozen backbone, which takes as many passes over the images as there are epochs."""
    lr: Rates = RATES
    """Learning rates to choose from, before the optimizer's `scale_lr`; all are trained at once. One alone (and one
    `standardize`) is used as it is."""
    standardize: Scalings = (False, True)
    """Scalings to choose from: the features as they are (false), or with mean 0 and variance 1 (true), which is a batch
    norm without weights."""

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        if self.protocol == "features" and self.views != PROBE_TRAIN:
            raise ValueError("views are for protocol=augmented; the features are computed without any")
        return self


class Linear(Evaluator):
    """A linear classifier on the frozen backbone: all rates trained at once, choice on held-out training images."""

    Options = LinearOptions
    options: LinearOptions

    def evaluate(self, subject: Subject) -> EvaluationResult:
        options = self.options
        classes = require_parts(subject)
        augmented = options.protocol == "augmented"
        material: Material = AugmentedFeatures(subject, options) if augmented else CachedFeatures(subject)
        labels = material.labels
        everything = torch.arange(len(labels))
        candidates = len(options.lr) * len(options.standardize)
        details: dict[str, Any] = {}
        place, fit, heads = (0, 0), everything, None
        if candidates > 1 or not options.refit:
            fit, held_out = stratified_split(labels, options.held_out, subject.seed)
            if len(held_out) == 0:
                raise UserError(
                    "linear: no class of the training part has two images, so none can be held out; use more"
                )
            log.info(f"linear: {candidates} classifiers for {options.epochs} epochs on {len(fit):,} images")
            plain = material.plain(held_out)
            sweep, curve = self._train(subject, material, fit, classes, options.lr, options.standardize, plain)
            top1, loss = judge_heads(sweep, *plain)
            best = best_head(top1, loss)
            if best is None:
                raise UserError("linear: every learning rate diverged; give lower ones with lr=[…]")
            place, heads = best, sweep.only(*best)
            details = {
                "curve": _rows(curve, *best),
                "held_out_top1": float(top1[best]),
                "held_out_images": len(plain[1]),
                "sweep": _sweep_rows(options, top1, loss),
            }
        lr, standardize = options.lr[place[1]], options.standardize[place[0]]
        chosen = f"linear: lr {lr:g}{', standardized' if standardize else ''}"
        if heads is None or options.refit:
            log.info(f"{chosen}; training it on all {len(labels):,}")
            fit = everything
            heads, curve = self._train(subject, material, everything, classes, (lr,), (standardize,), None)
            details["final_curve" if details else "curve"] = _rows(curve, 0, 0)
            if not bool(torch.isfinite(curve.losses[-1]).all()):
                raise UserError(f"linear: with lr {lr:g} it diverged; give a lower one with lr=…")
        else:
            log.info(chosen)
        # Only now, with everything chosen and trained, are the images of the evaluation part looked at.
        subject.decide({"lr": lr, "standardize": standardize} if candidates > 1 else {})
        test_features, test_labels = labeled_features(subject, "eval")
        with torch.no_grad(), exact_float32():
            scores = heads.scores(test_features)[0, 0]
        names = subject.dataset("eval").info.classes or ()
        metrics, judgment = judged(scores, test_labels, options.top, names)
        protocol = {
            **subject.describe(),
            "evaluator": "linear",
            **material.describe(),
            **Training.of(options, len(fit), whole=augmented).describe(),
            "lr": list(options.lr),
            "standardize": list(options.standardize),
            "choice": "highest top-1 on the held-out training images, of equal ones the lowest loss there",
            "after_choice": "trained again on all training images" if options.refit else "judged as it was chosen",
            "held_out": options.held_out,
            "fit_images": len(fit),
            "train_images": len(labels),
            "eval_images": len(test_labels),
            "chosen_lr": lr,
            "chosen_standardize": standardize,
        }
        details = {"chosen": {"lr": lr, "standardize": standardize}, **details, **judgment}
        return EvaluationResult(metrics, protocol, details)

    def _train(
        self,
        subject: Subject,
        material: Material,
        rows: Tensor,
        classes: int,
        rates: tuple[float, ...],
        standardize: tuple[bool, ...],
        held_out: tuple[Tensor, Tensor] | None,
    ) -> tuple[Heads, Curve]:
        augmented = self.options.protocol == "augmented"
        training = Training.of(self.options, len(rows), whole=augmented)
        batches = material.batches(rows, training.batch_size, subject.seed)
        scalings = material.scalings(rows, standardize)
        # Epochs on cached features take a second; those through the backbone are worth a line now and then.
        level = logging.INFO if augmented else logging.DEBUG
        return train_heads(batches, scalings, classes, rates, training, subject.seed, held_out=held_out, level=level)


def _rows(curve: Curve, scaling: int, rate: int) -> list[dict[str, Any]]:
    held_out = None if curve.held_out is None else curve.held_out[:, scaling, rate]
    return curve_rows(curve.losses[:, scaling, rate], [epoch[rate] for epoch in curve.lr], held_out)


def _sweep_rows(options: LinearOptions, top1: Tensor, loss: Tensor) -> list[dict[str, Any]]:
    """One row per head; no numbers where it diverged."""
    rows = []
    for v, standardize in enumerate(options.standardize):
        for r, lr in enumerate(options.lr):
            measured = finite(float(loss[v, r]))
            row: dict[str, Any] = {"lr": lr, "standardize": standardize, "diverged": measured is None}
            row["held_out_top1"] = None if measured is None else float(top1[v, r])
            row["held_out_loss"] = measured
            rows.append(row)
    return rows
