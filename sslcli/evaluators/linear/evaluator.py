"""The evaluator `linear`: a linear classifier on a frozen backbone, its learning rate chosen on held-out training
images and never on the test images."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.evaluation import LinearClassifier
from sslcli.evaluation.subject import labeled_features
from sslcli.runs.arithmetic import exact_float32

from ..probes.images import PROBE_TRAIN, ImageOptions
from ..probes.template import Probe, Trial
from ..probes.training import ProbeOptions, Rates, Training, as_list, curve_row
from .heads import mean_losses, train_heads
from .protocols import PROTOCOLS, protocol_for
from .sources import AugmentedFeatures, CachedFeatures

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
Scalings = Annotated[tuple[bool, ...], BeforeValidator(as_list), Field(min_length=1, max_length=2)]


class LinearOptions(ProbeOptions, ImageOptions):
    """`protocol=NAME` stands for published settings; `ssl list evaluators linear` shows them."""

    protocol: Literal["features", "augmented"] = "features"
    """features: computed once from each image as it is; augmented: the papers' protocol, a fresh crop and flip of each
    image in each epoch through the frozen backbone, which takes as many passes over the images as there are epochs.
    Or the name of published settings, such as dino; other options change them."""
    lr: Rates = RATES
    """Learning rates to choose from, before the optimizer's `scale_lr`; all are trained at once. A single one (with a
    single `standardize`) is used as it is."""
    standardize: Scalings = (False, True)
    """Scalings to choose from: the features as they are (false), or with mean 0 and variance 1 (true), which is a batch
    norm without weights."""

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        if self.protocol == "features" and self.views != PROBE_TRAIN:
            raise ValueError("views are for protocol=augmented; the features are computed without any")
        return self


class Linear(Probe):
    """Linear probe.
    A linear classifier on the frozen backbone: all rates are trained at once; held-out training images decide."""

    Options = LinearOptions
    options: LinearOptions
    name = "linear"
    protocols = PROTOCOLS

    @classmethod
    def protocol_for(cls, name: str, spec: BackboneSpec) -> str:
        return protocol_for(name, spec)

    def prepare(self) -> None:
        options, subject = self.options, self.subject
        self.augmented = options.protocol == "augmented"
        self.source: AugmentedFeatures | CachedFeatures = (
            AugmentedFeatures(subject, options) if self.augmented else CachedFeatures(subject)
        )
        self.labels = self.source.labels
        pairs = itertools.product(dict.fromkeys(options.standardize), dict.fromkeys(options.lr))
        self.candidates = [{"lr": lr, "standardize": standardize} for standardize, lr in pairs]

    def train(
        self, candidates: Sequence[dict[str, Any]], images: Tensor, held_out: Tensor | None, start: Trial | None
    ) -> list[Trial]:
        scalings, rates = (list(dict.fromkeys(each[key] for each in candidates)) for key in ("standardize", "lr"))
        training, seed = self._training(len(images)), self.subject.seed
        plain = None if held_out is None else self.source.plain(held_out)
        # Epochs on cached features take a second; those through the backbone deserve a line now and then.
        level = logging.INFO if self.augmented else logging.DEBUG
        batches, steps = self.source.batches(images, training.batch_size, seed)
        heads, losses, top1 = train_heads(
            batches, steps, self.source.scalings(images, scalings), self.classes, rates, training, seed, held_out=plain,
            level=level,
        )  # fmt: skip
        trials, schedules = [], [training.schedule_for(rate, steps) for rate in rates]
        loss = None if plain is None else mean_losses(heads, *plain)
        for settings in candidates:
            v, r = scalings.index(settings["standardize"]), rates.index(settings["lr"])
            trial = Trial(settings, heads.only(v, r))
            right: list[Any] = [None] * training.epochs if top1 is None else top1[:, v, r].tolist()
            trial.curve = [
                curve_row(epoch + 1, mean, schedules[r](epoch * steps), right[epoch])
                for epoch, mean in enumerate(losses[:, v, r].tolist())
            ]
            if loss is not None:
                trial.loss = float(loss[v, r])
                diverged = not math.isfinite(trial.loss)
                trial.top1 = math.nan if diverged else float(right[-1])
                trial.measured = {"diverged": diverged}
            trials.append(trial)
        return trials

    def test(self, trial: Trial) -> tuple[Tensor, Tensor]:
        features, labels = labeled_features(self.subject, "eval")
        with torch.no_grad(), exact_float32():
            return trial.model.scores(features)[0, 0], labels

    def classifier(self, trial: Trial) -> LinearClassifier:
        """The layer with the scaling of the features in its weights."""
        weight, bias, mean, scale = (
            each.double() for each in (trial.model.weight[0, 0], trial.model.bias[0, 0], trial.model.mean[0],
                                       trial.model.scale[0])
        )  # fmt: skip
        weight = weight * scale
        return LinearClassifier(weight.float(), (bias - weight @ mean).float())

    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        options = self.options
        return {
            **self.source.describe(),
            **self._training(images).describe(),
            "lr": list(options.lr),
            "standardize": list(options.standardize),
        }

    def _training(self, images: int) -> Training:
        return Training.of(self.options, images, whole=self.augmented)
