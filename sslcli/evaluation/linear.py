"""The evaluator `linear`: a linear classifier on frozen, cached features, its learning rate chosen on held-out
training images and never on the images that it is judged on."""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..contracts.errors import UserError
from ..contracts.evaluation import EvaluationResult, Evaluator, Subject
from ..contracts.options import Options
from .linear_heads import Heads, Recipe, best_head, judge_heads, stratified_split, train_heads
from .scores import accuracy, confusion, exact_float32, per_class
from .subject import labelled_features, require_parts

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class LinearOptions(Options):
    lr: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=RATES, min_length=1)
    """Learning rates to choose from; all are trained at once."""
    standardise: tuple[bool, ...] = Field(default=(False, True), min_length=1, max_length=2)
    """Scalings to choose from: the features as they are (false), or with mean 0 and variance 1 (true)."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training features."""
    batch_size: int = Field(default=256, ge=1)
    """Features per step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(default=0.0, ge=0)
    """SGD's weight decay, on weights and biases."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images, the same of each class, on which learning rate and scaling are chosen."""
    seeds: int = Field(default=1, ge=1)
    """How many times the chosen classifier is trained, with another order each time; the accuracies are averaged."""


class Linear(Evaluator):
    """A linear classifier on frozen features: sweep, choice on held-out training images, training on all of them."""

    Options = LinearOptions
    options: LinearOptions

    def evaluate(self, subject: Subject) -> EvaluationResult:
        options = self.options
        classes = require_parts(subject)
        features, labels = labelled_features(subject, "train")
        recipe = Recipe(options.epochs, options.batch_size, options.momentum, options.weight_decay)
        fit, held_out = stratified_split(labels, options.held_out, subject.seed)
        if len(held_out) == 0:
            raise UserError("linear: no class of the training part has two images, so none can be held out; use more")
        heads_count = len(options.lr) * len(options.standardise)
        subject.tell(f"linear: {heads_count} classifiers for {options.epochs} epochs on {len(fit):,} features")
        sweep = train_heads(features, labels, fit, classes, options.lr, options.standardise, recipe, subject.seed)
        place = held_out.to(features.device)
        top1, loss = judge_heads(sweep, features[place], labels[place])
        best = best_head(top1, loss)
        if best is None:
            raise UserError("linear: every learning rate diverged; give lower ones with lr=[…]")
        lr, standardised = options.lr[best[1]], options.standardise[best[0]]
        subject.tell(f"linear: lr {lr:g}{', standardised' if standardised else ''}; training it on all {len(labels):,}")
        everything = torch.arange(len(labels))
        finals = [
            train_heads(features, labels, everything, classes, [lr], [standardised], recipe, subject.seed + repeat)
            for repeat in range(options.seeds)
        ]
        # Only now, with everything chosen and trained, are the images of the evaluation part looked at.
        test_features, test_labels = labelled_features(subject, "eval")
        metrics, judged = _judge(finals, test_features, test_labels, subject)
        details = {
            "chosen": {"lr": lr, "standardised": standardised, "held_out_top1": float(top1[best])},
            "sweep": _sweep_rows(options, top1, loss),
            "sweep_loss_curve": sweep.losses[:, best[0], best[1]].tolist(),
            "loss_curve": finals[0].losses[:, 0, 0].tolist(),
            **judged,
        }
        protocol = {
            **subject.describe(),
            "evaluator": "linear",
            "classifier": "linear, from zero",
            "optimizer": "sgd",
            "schedule": "cosine to 0 by step",
            **options.plain(),
            "choice": "highest top-1 on the held-out training images, of equal ones the lowest loss there",
            "after_choice": "trained again on all training images",
            "fit_images": len(fit),
            "held_out_images": len(held_out),
            "train_images": len(labels),
            "eval_images": len(test_labels),
            "chosen_lr": lr,
            "chosen_standardise": standardised,
        }
        return EvaluationResult(metrics, protocol, details)


def _judge(
    finals: list[Heads], features: Tensor, labels: Tensor, subject: Subject
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics averaged over the repeats, and the details of the first."""
    with exact_float32():
        scores = [heads.scores(features)[0, 0] for heads in finals]
    top1 = [accuracy(each, labels) for each in scores]
    metrics = {"top1": statistics.fmean(top1)}
    if scores[0].shape[1] > 5:
        metrics["top5"] = statistics.fmean(accuracy(each, labels, 5) for each in scores)
    matrix = confusion(scores[0], labels)
    names = subject.dataset("eval").info.classes or ()
    return metrics, {
        "top1_of_each_seed": top1,
        "per_class": dict(zip(names, per_class(matrix), strict=True)),
        "confusion": matrix.tolist(),
    }


def _sweep_rows(options: LinearOptions, top1: Tensor, loss: Tensor) -> list[dict[str, Any]]:
    """One row per head; no loss where it diverged, since JSON has no infinity."""
    rows = []
    for v, standardised in enumerate(options.standardise):
        for r, lr in enumerate(options.lr):
            good = bool(torch.isfinite(loss[v, r]))
            row: dict[str, Any] = {"lr": lr, "standardised": standardised, "diverged": not good}
            row["held_out_top1"] = float(top1[v, r]) if good else None
            row["held_out_loss"] = float(loss[v, r]) if good else None
            rows.append(row)
    return rows
