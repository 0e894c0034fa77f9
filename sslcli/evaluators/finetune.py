"""The evaluator `finetune`: a copy of the backbone and a classifier, all weights trained on a share of the labels.

The semi-supervised protocol of SimCLR (Chen et al., https://arxiv.org/abs/2002.05709, appendix B.5), with a learning
rate of the head's own as in SwAV and Barlow Twins. A backbone that was exported with projector layers (SimCLR v2,
https://arxiv.org/abs/2006.10029) is fine-tuned with them.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.contracts.method import ParameterGroup
from sslcli.data.subset import Subset, stratified_share, stratified_split
from sslcli.evaluation.extraction import extract_features
from sslcli.evaluation.scores import exact_float32, in_top
from sslcli.evaluation.subject import require_parts
from sslcli.modules.roles import parameter_roles
from sslcli.optimizers.groups import set_lr, set_weight_decay, split_by_role, weight_decay_schedule
from sslcli.randomness import seed_for
from sslcli.runs.device import resolve_precision

from .linear.augmented import DTYPES
from .probes.images import ImageOptions, ViewBatches, labels_of
from .probes.training import ProbeOptions, Rates, Training, curve_rows, draw_weights, finite, judged

log = logging.getLogger(__name__)

_SHARE, _VIEWS, _WEIGHTS, _STEP = 11, 12, 13, 14
#: Images at once where the network is judged.
_JUDGED = 256


class FinetuneOptions(ProbeOptions, ImageOptions):
    """Published settings stand in `docs/probes.md`."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the labeled training images to learn from: the same of each class, at least one image."""
    lr: Rates = (0.05,)
    """Learning rates of the backbone to choose from, before the optimizer's `scale_lr`; each costs a training. One
    alone is used as it is."""
    head_lr: float | None = Field(default=None, gt=0)
    """The classifier's own learning rate, scaled and scheduled like the backbone's; null: the backbone's."""
    optimizer: dict[str, Any] = Field(default={"name": "sgd", "nesterov": True}, validate_default=True)
    """Any registered optimizer with its options but lr, as in a run's config: {name: adamw, weight_decay: 0.05}."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the images of the share."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto: bf16 where the device is made for it, else fp16 on CUDA, else fp32."""


class Classifier(nn.Module):
    """A backbone and a linear layer on its pooled features."""

    def __init__(self, backbone: Backbone, weight: Tensor) -> None:
        """Args:
        backbone: all its weights are trained.
        weight: (C, D), the linear layer's; its bias is zero.
        """
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores (N, C) of normalized images (N, C, H, W)."""
        scores: Tensor = self.head(self.backbone(images).pooled)
        return scores

    def groups(self, head_lr: float) -> list[ParameterGroup]:
        """Returns the parameters in two groups; the head's learning rate is `head_lr` times the backbone's."""
        named = dict(self.named_parameters())
        parts = {part: {n: p for n, p in named.items() if n.startswith(f"{part}.")} for part in ("backbone", "head")}
        return [ParameterGroup(parts["backbone"], "backbone"), ParameterGroup(parts["head"], "head", head_lr)]


class Finetune(Evaluator):
    """All weights of a copy of the backbone, and a classifier, trained on views of a share of the labeled images."""

    Options = FinetuneOptions
    options: FinetuneOptions
    in_all = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        options = self.options
        classes = require_parts(subject)
        train = subject.dataset("train")
        labels = labels_of(train)
        places = stratified_share(labels, options.share, seed_for(subject.seed, _SHARE))
        if len(places) < 2:
            raise UserError(f"finetune: a single image to learn from is too few; raise share above {options.share:g}")
        self.precision = resolve_precision(options.precision, subject.device)
        details: dict[str, Any] = {}
        lr, network, fit = options.lr[0], None, places
        if len(options.lr) > 1 or not options.refit:
            kept, held = stratified_split(labels[places], options.held_out, subject.seed)
            if len(held) == 0:
                raise UserError(
                    "finetune: no class has two images in the share, so none can be held out; "
                    "raise share, or give one lr"
                )
            fit, held_out = places[kept], Subset(train, places[held])
            trained = [self._train(subject, train, fit, classes, rate, held_out) for rate in options.lr]
            scores = [(top1, -loss) if math.isfinite(loss) else (-1.0, -math.inf) for _, _, top1, loss in trained]
            best = max(range(len(scores)), key=scores.__getitem__)
            if scores[best][0] < 0:
                raise UserError("finetune: every learning rate diverged; give lower ones with lr=[…]")
            lr, network = options.lr[best], trained[best][0]
            details = {"curve": trained[best][1], "held_out_top1": scores[best][0], "held_out_images": len(held)}
            rows = zip(options.lr, trained, strict=True)
            details["sweep"] = [
                {"lr": rate, "held_out_top1": finite(top1), "held_out_loss": finite(loss)}
                for rate, (_, _, top1, loss) in rows
            ]
        if network is None or options.refit:
            fit = places
            network, curve, _, _ = self._train(subject, train, places, classes, lr, None)
            details["final_curve" if details else "curve"] = curve
            if curve[-1]["loss"] is None:
                raise UserError(f"finetune: with lr {lr:g} it diverged; give a lower one with lr=…")
        subject.decide({"lr": lr} if len(options.lr) > 1 else {})
        scores_of, test_labels = self._scores(subject, network, subject.dataset("eval"))
        names = subject.dataset("eval").info.classes or ()
        metrics, judgment = judged(scores_of, test_labels, options.top, names)
        protocol = {
            **subject.describe(),
            "evaluator": "finetune",
            "trained": "all weights of a copy of the backbone, in training mode, and the classifier",
            **Training.of(options, len(fit), whole=True).describe(),
            "lr": list(options.lr),
            "head_lr": options.head_lr,
            "share": options.share,
            "choice": "highest top-1 on held-out images of the share, of equal ones the lowest loss there",
            "after_choice": "trained again on the whole share" if options.refit else "judged as it was chosen",
            "held_out": options.held_out,
            "train_view": self.view,
            "train_precision": self.precision,
            "fit_images": len(fit),
            "train_images": len(places),
            "eval_images": len(test_labels),
            "chosen_lr": lr,
        }
        return EvaluationResult(metrics, protocol, {"chosen": {"lr": lr}, **details, **judgment})

    def _train(
        self, subject: Subject, train: Dataset, places: Tensor, classes: int, lr: float, held_out: Dataset | None
    ) -> tuple[Classifier, list[dict[str, Any]], float, float]:
        """Trains a fresh copy; returns it with its curve, and top-1 and loss on the held-out images at the end."""
        options, device = self.options, subject.device
        training = Training.of(options, len(places), whole=True)
        views = ViewBatches(
            subject, Subset(train, places), options, training.batch_size, seed_for(subject.seed, _VIEWS)
        )
        self.view: Mapping[str, Any] = views.view
        network = self._classifier(subject, classes, training)
        steps, dtype = views.steps_per_epoch, DTYPES.get(self.precision)
        cls, chosen = training.optimizer_for(lr)
        roles = parameter_roles(network)
        groups = network.groups(1.0 if options.head_lr is None else options.head_lr / lr)
        optimizer = cls.build([each for group in groups for each in split_by_role(group, roles, chosen)], chosen)
        schedule = training.schedule_for(lr, steps)
        decay = weight_decay_schedule(chosen, training.epochs * steps)
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        losses: list[float] = []
        right: list[float] = []
        loss_there = math.nan
        log.info(f"finetune: lr {lr:g}, {training.epochs} epochs of {len(places):,} images")
        cuda = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), closing(iter(views)) as stream:
            for epoch in range(training.epochs):
                network.train()
                total = torch.zeros((), device=device)
                for step in range(epoch * steps, (epoch + 1) * steps):
                    set_lr(optimizer, schedule, step, schedule.base)
                    if decay is not None:
                        set_weight_decay(optimizer, decay, step)
                    images, labels = next(stream)
                    images = images.contiguous(memory_format=torch.channels_last)
                    torch.manual_seed(seed_for(subject.seed, _STEP, step))  # dropout and the like
                    with torch.autocast(device.type, dtype, enabled=dtype is not None):
                        scores = network(images)
                    loss = F.cross_entropy(scores.float(), labels)
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(scaler.scale(loss))
                    scaler.step(optimizer)
                    scaler.update()
                    total += loss.detach()
                losses.append(float(total) / steps)
                if held_out is not None:
                    top1, loss_there = self._judge(subject, network, held_out)
                    right.append(top1)
                if (epoch + 1) % max(1, training.epochs // 10) == 0:
                    there = f", top-1 {right[-1]:.2%} on held-out images" if right else ""
                    log.info(f"finetune: epoch {epoch + 1} of {training.epochs}, loss {losses[-1]:.4f}{there}")
                if not math.isfinite(losses[-1]):
                    loss_there = math.nan
                    break
        rates = [schedule(epoch * steps) for epoch in range(len(losses))]
        rows = curve_rows(
            torch.tensor(losses, dtype=torch.float64),
            rates,
            torch.tensor(right, dtype=torch.float64) if right else None,
        )
        return network.eval(), rows, right[-1] if right else math.nan, loss_there

    def _classifier(self, subject: Subject, classes: int, training: Training) -> Classifier:
        shape = (classes, subject.backbone.spec.feature_dim)
        weight = draw_weights(shape, training.init, seed_for(subject.seed, _WEIGHTS))
        with torch.random.fork_rng(devices=[]):  # torch's own initialization draws, and is written over
            network = Classifier(copy.deepcopy(subject.backbone), weight).to(subject.device)
        return network.to(memory_format=torch.channels_last)

    def _scores(self, subject: Subject, network: Classifier, data: Dataset) -> tuple[Tensor, Tensor]:
        """Returns scores (N, C) and labels (N,) of all images, in `eval()` and float32."""
        found = extract_features(
            network.backbone, data, image_size=subject.image_size, normalize=subject.normalize, device=subject.device,
            batch_size=_JUDGED,
        )  # fmt: skip
        assert found.labels is not None
        with torch.no_grad(), exact_float32():
            return network.head(found.features), found.labels

    def _judge(self, subject: Subject, network: Classifier, data: Dataset) -> tuple[float, float]:
        """Returns top-1 and mean cross-entropy."""
        scores, labels = self._scores(subject, network, data)
        return float(in_top(scores, labels, 1).double().mean()), float(F.cross_entropy(scores.double(), labels))
