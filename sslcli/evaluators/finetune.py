"""The evaluator `finetune`: a copy of the backbone and a classifier, all weights trained on a share of the labels.

The semi-supervised protocol of SimCLR (Chen et al., https://arxiv.org/abs/2002.05709, appendix B.5), with a learning
rate of the head's own as in SwAV and Barlow Twins. A backbone that was exported with projector layers (SimCLR v2,
https://arxiv.org/abs/2006.10029) is fine-tuned with them.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import Subject
from sslcli.contracts.method import ParameterGroup
from sslcli.data.subset import Subset, stratified_share
from sslcli.evaluation.extraction import DTYPES, extract_features
from sslcli.evaluation.scores import accuracy, exact_float32
from sslcli.modules.roles import parameter_roles
from sslcli.optimizers.groups import set_rates, split_by_role, weight_decay_schedule
from sslcli.randomness import seed_for
from sslcli.runs.device import resolve_precision

from .probes.images import ImageOptions, ViewBatches
from .probes.template import Probe, Trainer, Trial
from .probes.training import ProbeOptions, Rates, Training, curve_row, draw_weights

log = logging.getLogger(__name__)

_SHARE, _VIEWS, _WEIGHTS, _STEP = 11, 12, 13, 14


class FinetuneOptions(ProbeOptions, ImageOptions):
    """Published settings are in `docs/probes.md`."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the labeled training images to learn from: the same of each class, at least one image."""
    lr: Rates = (0.05,)
    """Learning rates of the backbone to choose from, before the optimizer's `scale_lr`; each takes a training run. A
    single one is used as it is."""
    head_lr: float | None = Field(default=None, gt=0)
    """The classifier's own learning rate, scaled and scheduled like the backbone's; null: the backbone's."""
    optimizer: dict[str, Any] = Field(default={"name": "sgd", "nesterov": True}, validate_default=True)
    """Any registered optimizer with its options but lr, as in a run's config: {name: adamw, weight_decay: 0.05}."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the images of the share."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto: bf16 where the device has it in hardware, else fp16 on CUDA, else fp32."""


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


class Finetune(Probe):
    """All weights of a copy of the backbone, and a classifier, trained on views of a share of the labeled images."""

    Options = FinetuneOptions
    options: FinetuneOptions
    in_all = False
    name = "finetune"
    remedy = "raise share, or give a single lr"

    def trainer(self, subject: Subject, classes: int) -> Trainer:
        return FinetuneTrainer(self.options, subject, classes)


class FinetuneTrainer(Trainer):
    """Trains a fresh copy of the backbone for each learning rate."""

    def __init__(self, options: FinetuneOptions, subject: Subject, classes: int) -> None:
        self.options, self.subject, self.classes = options, subject, classes
        self.data = subject.dataset("train")
        assert self.data.labels is not None
        self.share = stratified_share(self.data.labels, options.share, seed_for(subject.seed, _SHARE))
        if len(self.share) < 2:
            raise UserError(f"finetune: a single image to learn from is too few; raise share above {options.share:g}")
        self.labels = self.data.labels[self.share]
        self.candidates = [{"lr": lr} for lr in dict.fromkeys(options.lr)]
        self.precision = resolve_precision(options.precision, subject.device)
        self.view: Mapping[str, Any] = {}

    def train(
        self, candidates: Sequence[dict[str, Any]], images: Tensor, held_out: Tensor | None, start: Trial | None
    ) -> list[Trial]:
        fit = self.share[images]
        held = None if held_out is None else Subset(self.data, self.share[held_out])
        return [self._train(settings, fit, held) for settings in candidates]

    def test(self, trial: Trial) -> tuple[Tensor, Tensor]:
        return self._scores(trial.model, self.subject.dataset("eval"))

    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        options = self.options
        return {
            "trained": "all weights of a copy of the backbone, in training mode, and the classifier",
            **Training.of(options, images, whole=True).describe(),
            "lr": list(options.lr),
            "head_lr": options.head_lr,
            "share": options.share,
            "train_view": self.view,
            "train_precision": self.precision,
        }

    def _train(self, settings: dict[str, Any], images: Tensor, held_out: Dataset | None) -> Trial:
        """Trains a fresh copy on the images at these indices."""
        options, seed, device, lr = self.options, self.subject.seed, self.subject.device, settings["lr"]
        training = Training.of(options, len(images), whole=True)
        views = ViewBatches(
            self.subject, Subset(self.data, images), options, training.batch_size, seed_for(seed, _VIEWS)
        )
        self.view = views.view
        network = self._classifier(training)
        trial = Trial(settings, network)
        steps, dtype = views.steps_per_epoch, DTYPES.get(self.precision)
        cls, chosen = training.optimizer_for(lr)
        roles = parameter_roles(network)
        groups = network.groups(1.0 if options.head_lr is None else options.head_lr / lr)
        optimizer = cls.build([each for group in groups for each in split_by_role(group, roles, chosen)], chosen)
        schedule = training.schedule_for(lr, steps)
        decay = weight_decay_schedule(chosen, training.epochs * steps)
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        log.info(f"finetune: lr {lr:g}, {training.epochs} epochs of {len(images):,} images")
        cuda = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), closing(iter(views)) as stream:
            for epoch in range(training.epochs):
                network.train()
                total = torch.zeros((), device=device)
                for step in range(epoch * steps, (epoch + 1) * steps):
                    set_rates(optimizer, step, schedule, decay)
                    inputs, labels = next(stream)
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                    torch.manual_seed(seed_for(seed, _STEP, step))  # dropout and the like
                    with torch.autocast(device.type, dtype, enabled=dtype is not None):
                        scores = network(inputs)
                    loss = F.cross_entropy(scores.float(), labels)
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(scaler.scale(loss))
                    scaler.step(optimizer)
                    scaler.update()
                    total += loss.detach()
                mean, measured = float(total) / steps, ""
                if held_out is not None:
                    scores, labels = self._scores(network, held_out)
                    trial.top1, trial.loss = accuracy(scores, labels), float(F.cross_entropy(scores.double(), labels))
                    measured = f", top-1 {trial.top1:.2%} on held-out images"
                right = None if held_out is None else trial.top1
                trial.curve.append(curve_row(epoch + 1, mean, schedule(epoch * steps), right))
                if (epoch + 1) % max(1, training.epochs // 10) == 0:
                    log.info(f"finetune: epoch {epoch + 1} of {training.epochs}, loss {mean:.4f}{measured}")
                if not math.isfinite(mean):
                    trial.loss = math.nan
                    break
        network.eval()
        return trial

    def _classifier(self, training: Training) -> Classifier:
        backbone, device = self.subject.backbone, self.subject.device
        shape = (self.classes, backbone.spec.feature_dim)
        weight = draw_weights(shape, training.init, seed_for(self.subject.seed, _WEIGHTS))
        with torch.random.fork_rng(devices=[]):  # torch's own initialization draws, and is overwritten
            network = Classifier(copy.deepcopy(backbone), weight).to(device)
        return network.to(memory_format=torch.channels_last)

    def _scores(self, network: Classifier, data: Dataset) -> tuple[Tensor, Tensor]:
        """Returns scores (N, C) and labels (N,) of all images, in `eval()` and float32."""
        found = extract_features(network.backbone, data, self.subject)
        assert found.labels is not None
        with torch.no_grad(), exact_float32():
            return network.head(found.features), found.labels
