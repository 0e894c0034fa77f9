"""The evaluator `finetune`: a copy of the backbone and a classifier, all weights trained on a fraction of the labels.

The semi-supervised protocol of SimCLR (Chen et al., https://arxiv.org/abs/2002.05709, appendix B.5), with a learning
rate of the head's own as in SwAV and Barlow Twins; and that of MAE (He et al., https://arxiv.org/abs/2111.06377, table
9), with rates that decay from layer to layer, mixed images and drop path. A backbone that was exported with projector
layers (SimCLR v2, https://arxiv.org/abs/2006.10029) is fine-tuned with them.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import LinearClassifier
from sslcli.contracts.method import ParameterGroup
from sslcli.data.subset import Subset, stratified_share
from sslcli.evaluation.extraction import autocast, extract_features
from sslcli.evaluation.scores import accuracy
from sslcli.modules.depth import layer_multipliers, parameter_depths
from sslcli.modules.drop_path import drop_path_rates, grow_drop_path
from sslcli.modules.roles import parameter_roles
from sslcli.randomness import seed_for, seed_generators
from sslcli.runs.arithmetic import exact_float32
from sslcli.runs.device import memory_format, resolve_precision

from ..probes.images import ImageOptions, ViewBatches
from ..probes.template import Probe, Trial
from ..probes.training import ProbeOptions, Rates, ScheduledOptimizer, Training, curve_row, draw_weights
from .averaging import AveragedWeights
from .mixing import MixingOptions, draw_mixing
from .protocols import PROTOCOLS

log = logging.getLogger(__name__)

_SHARE, _VIEWS, _WEIGHTS, _STEP, _MIXING = 11, 12, 13, 14, 15
#: Of the averaged weights, the share that may be left of those at the start without a warning.
_START = 0.05


class FinetuneOptions(ProbeOptions, ImageOptions, MixingOptions):
    """`protocol=NAME` stands for published settings; more are in `docs/probes.md`."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the labeled training images to train on: the same for each class, at least one image."""
    lr: Rates = (0.05,)
    """Learning rates of the backbone to choose from, before the optimizer's `scale_lr`; each takes a training run. A
    single one is used as it is."""
    head_lr: float | None = Field(default=None, gt=0)
    """The classifier's own learning rate, scaled and scheduled like the backbone's; null: the backbone's."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor by which the learning rate falls from each layer to the one before: ViT blocks or ResNet stages, below
    them patch embedding and positions, or the stem; above them final norm and classifier have the full rate."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Probability of skipping a residual branch, growing linearly from 0 in the first block to this in the last; null:
    as in pre-training."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Test the exponential moving average of the weights, with this decay per step; null: the last weights."""
    optimizer: dict[str, Any] = Field(default={"name": "sgd", "nesterov": True}, validate_default=True)
    """Any registered optimizer with its options except lr, as in a run's config: {name: adamw, weight_decay: 0.05}."""
    epochs: int = Field(default=30, ge=1)
    """Passes over these images."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network; auto: bf16 if the device supports it natively, else fp16 on CUDA, else fp32."""

    @model_validator(mode="after")
    def _mixes_two(self) -> Self:
        if self.mixes and self.batch_size < 2:
            raise ValueError("mixup and cutmix mix the images of a batch: set batch_size to 2 or more")
        return self


class Classifier(nn.Module):
    """A backbone and a linear layer on its pooled features."""

    def __init__(self, backbone: Backbone, weight: Tensor) -> None:
        """Args:
        backbone: all its weights are trained.
        weight: (C, D), the linear layer's; its bias is zero.
        """
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores (N, C) of normalized images (N, C, H, W)."""
        scores: Tensor = self.head(self.backbone(images).pooled)
        return scores


class Finetune(Probe):
    """Fine-tuning, also with few labels.
    All weights of a copy of the backbone, and a classifier, trained on views of a fraction of the labeled images."""

    Options = FinetuneOptions
    options: FinetuneOptions
    in_all = False
    name = "finetune"
    protocols = PROTOCOLS
    remedy = "raise share, or give a single lr"

    def prepare(self) -> None:
        options, subject = self.options, self.subject
        self.data = subject.dataset("train")
        assert self.data.labels is not None
        self.share = stratified_share(self.data.labels, options.share, seed_for(subject.seed, _SHARE))
        if len(self.share) < 2:
            raise UserError(f"finetune: needs more than one image to train on; raise share above {options.share:g}")
        self.labels = self.data.labels[self.share]
        self.candidates = [{"lr": lr} for lr in dict.fromkeys(options.lr)]
        self.precision = resolve_precision(options.precision, subject.device)

    def train(
        self, candidates: Sequence[dict[str, Any]], images: Tensor, held_out: Tensor | None, start: Trial | None
    ) -> list[Trial]:
        fit = self.share[images]
        held = None if held_out is None else Subset(self.data, self.share[held_out])
        return [self._train(settings, fit, held) for settings in candidates]

    def test(self, trial: Trial) -> tuple[Tensor, Tensor]:
        return self._scores(trial.model, self.subject.dataset("eval"))

    def classifier(self, trial: Trial) -> LinearClassifier:
        head = trial.model.head
        return LinearClassifier(head.weight.detach(), head.bias.detach(), trial.model.backbone)

    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        options = self.options
        return {
            "trained": "all weights of a copy of the backbone, in training mode, and the classifier",
            **Training.of(options, images, whole=True).describe(),
            "lr": list(options.lr),
            "head_lr": options.head_lr,
            "layer_decay": options.layer_decay,
            "drop_path": max(drop_path_rates(trial.model.backbone), default=0.0),
            "share": options.share,
            "train_view": self.view,
            "train_precision": self.precision,
            **{name: getattr(options, name) for name in MixingOptions.model_fields},
            "evaluated_weights": trial.details["evaluated_weights"],
        }

    def _train(self, settings: dict[str, Any], images: Tensor, held_out: Dataset | None) -> Trial:
        """Trains a fresh copy on the images at these indices."""
        options, seed, device, lr = self.options, self.subject.seed, self.subject.device, settings["lr"]
        training = Training.of(options, len(images), whole=True)
        views = ViewBatches(
            self.subject, Subset(self.data, images), options, training.batch_size, seed_for(seed, _VIEWS)
        )
        self.view = views.view
        if options.mixes and training.batch_size < 2:
            raise UserError(
                f"{self.name}: mixup and cutmix mix the images of a batch, but a batch of these {len(images)} has one; "
                "raise share or batch_size"
            )
        network, layout = self._network(training)
        trial = Trial(settings, network, details={"evaluated_weights": "last"})
        steps = views.steps_per_epoch
        averaged = None
        if options.ema_decay is not None:
            averaged = AveragedWeights(network, options.ema_decay)
            trial.model = averaged.network
            trial.details["evaluated_weights"] = f"moving average with decay {options.ema_decay:g}"
            if (left := options.ema_decay ** (steps * training.epochs)) > _START:
                log.warning(f"finetune: {left:.0%} of the averaged weights are those at the start; lower ema_decay")
        scheduled = ScheduledOptimizer(training, lr, steps, self._groups(network, lr), parameter_roles(network))
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        log.info(f"finetune: lr {lr:g}, {training.epochs} epochs of {len(images):,} images")
        cuda = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), closing(iter(views)) as stream:
            for epoch in range(training.epochs):
                network.train()
                total = torch.zeros((), device=device)
                for step in range(epoch * steps, (epoch + 1) * steps):
                    scheduled.prepare(step)
                    inputs, labels = next(stream)
                    mixing = draw_mixing(options, *inputs.shape[-2:], seed, _MIXING, step)
                    inputs = mixing.images(inputs).contiguous(memory_format=layout)
                    seed_generators(seed_for(seed, _STEP, step), device)  # dropout and the like
                    with autocast(device, self.precision):
                        scores = network(inputs)
                    loss = mixing.loss(scores.float(), labels, options.label_smoothing)
                    network.zero_grad()
                    torch.autograd.backward(scaler.scale(loss))
                    scaler.step(scheduled.optimizer)
                    scaler.update()
                    if averaged is not None:
                        averaged.follow(network)
                    total += loss.detach()
                mean, right, measured = float(total) / steps, None, ""
                if held_out is not None:
                    scores, labels = self._scores(trial.model, held_out)
                    right = trial.top1 = accuracy(scores, labels)
                    trial.loss = float(F.cross_entropy(scores.double(), labels))
                    measured = f", top-1 {right:.2%} on held-out images"
                trial.curve.append(curve_row(epoch + 1, mean, scheduled.schedule(epoch * steps), right))
                if (epoch + 1) % max(1, training.epochs // 10) == 0:
                    log.info(f"finetune: epoch {epoch + 1} of {training.epochs}, loss {mean:.4f}{measured}")
                if not math.isfinite(mean):
                    trial.loss = math.nan
                    break
        trial.model.eval()
        return trial

    def _network(self, training: Training) -> tuple[Classifier, torch.memory_format]:
        """A fresh copy with its classifier on the device, and the memory format of its input."""
        options, device = self.options, self.subject.device
        backbone = copy.deepcopy(self.subject.backbone)
        if options.drop_path is not None and not grow_drop_path(backbone, options.drop_path):
            raise UserError(
                f"{self.name}: drop_path: this backbone has no drop-path layers whose rate can be set; leave it out "
                "(timm's networks take drop_path_rate when they are built)"
            )
        shape = (self.classes, backbone.spec.feature_dim)
        weight = draw_weights(shape, training.init, seed_for(self.subject.seed, _WEIGHTS))
        layout = memory_format(backbone, device)
        return Classifier(backbone, weight).to(device).to(memory_format=layout), layout

    def _groups(self, network: Classifier, lr: float) -> list[ParameterGroup]:
        """The classifier's parameters, and the backbone's, with `layer_decay` by depth."""
        decay, backbone = self.options.layer_decay, network.backbone
        head = ParameterGroup(dict(network.head.named_parameters("head")), "head", (self.options.head_lr or lr) / lr)
        if decay == 1:
            return [ParameterGroup(dict(backbone.named_parameters("backbone")), "backbone"), head]
        by_depth: dict[int, dict[str, nn.Parameter]] = {}
        for (name, parameter), depth in zip(
            backbone.named_parameters("backbone"), parameter_depths(backbone).values(), strict=True
        ):
            by_depth.setdefault(depth, {})[name] = parameter
        scales = layer_multipliers(decay, len(backbone.layer_modules()))
        layers = [ParameterGroup(by_depth[i], f"backbone/layer {i}", scales[i]) for i in sorted(by_depth)]
        return [*layers, head]

    def _scores(self, network: Classifier, data: Dataset) -> tuple[Tensor, Tensor]:
        """Returns scores (N, C) and labels (N,) of all images, in `eval()` and float32."""
        found = extract_features(network.backbone, data, self.subject)
        assert found.labels is not None
        with torch.no_grad(), exact_float32():
            return network.head(found.features), found.labels
