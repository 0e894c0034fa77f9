"""The callback `online_probe`: a linear classifier trained along with the run, on the features of its own steps.

The features are detached and the classifier has its own optimizer: nothing is drawn, and no gradient reaches the
encoder, so the run is bitwise identical with and without it. On several processes each one trains it on the whole
batch.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslcli import distributed
from sslcli.contracts.callback import RunContext
from sslcli.contracts.data import Part
from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.options import FREE
from sslcli.evaluation.scores import accuracy, in_top, possible_tops
from sslcli.evaluation.subject import same_images
from sslcli.evaluators.probes.training import Counts, RecipeOptions, ScheduledOptimizer, Training
from sslcli.modules.roles import parameter_roles
from sslcli.optimizers.stored import check_stored

from .shared_features import EpochMonitor, shared_features

log = logging.getLogger(__name__)

MODULE, OPTIMIZER = "probe.", "optimizer."


class OnlineProbeOptions(RecipeOptions):
    lr: float = Field(default=0.03, gt=0, json_schema_extra=FREE)
    """Learning rate at the top of the schedule, before the optimizer's `scale_lr`."""
    optimizer: dict[str, Any] = Field(default={"name": "sgd"}, validate_default=True, json_schema_extra=FREE)
    """Any registered optimizer with its options except lr, as in a run's config: {name: larc, clip: false}."""
    schedule: dict[str, Any] = Field(default={"name": "cosine"}, validate_default=True, json_schema_extra=FREE)
    """Any registered schedule with its options (warmup_epochs, final_lr, milestones), over the length of the run."""
    standardize: bool = Field(default=True, json_schema_extra=FREE)
    """Scale each feature to mean 0 and variance 1 over the batch (in the test by running averages), as a batch norm
    without weights does, so that one learning rate suits all networks."""
    every_epochs: int = Field(default=10, ge=1, json_schema_extra=FREE)
    """Test it on images of the part `eval` every this many epochs, and at the end."""
    limit_eval: int | None = Field(default=2_000, ge=1, json_schema_extra=FREE)
    """How many of these images, the same fraction of each class; with the kNN monitor's `limit_eval` they are the same
    images, whose features are computed once for both."""
    top: Counts = Field(default=(1, 5), json_schema_extra=FREE)
    """Which top-k accuracies to log; values of k that are not below the number of classes are skipped."""


def scaled_linear(dim: int, classes: int, standardize: bool) -> nn.Sequential:
    """Returns (N, D) → (N, C): a batch norm without weights, or nothing, and a linear layer from zero."""
    linear = nn.utils.skip_init(nn.Linear, dim, classes)  # type: ignore[no-untyped-call]  # it draws nothing
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    norm = nn.BatchNorm1d(dim, affine=False) if standardize else nn.Identity()
    return nn.Sequential(OrderedDict(norm=norm, linear=linear))


class OnlineProbe(EpochMonitor):
    """Accuracy of a linear classifier that is trained along with the run.
    Adds `probe_loss`, `probe_top1` and `probe_lr` to the run's log lines, measured on each training batch before the
    probe is trained on it, and logs `probe_eval_top1` after epochs; off if the training images have no labels.
    It takes 0.6% of the time of the training steps (ResNet-18 of width 16, 5,000 images of CIFAR-10, one CPU thread).

    Report the result of `ssl eval --method linear` instead: this classifier is trained on features that keep
    changing, of augmented images and under the batch's statistics.
    """

    Options = OnlineProbeOptions
    options: OnlineProbeOptions

    def __init__(self, options: OnlineProbeOptions) -> None:
        super().__init__(options)
        self.probe: nn.Sequential | None = None
        self.steps = 0
        self.restored: dict[str, Tensor | int | float | str] = {}

    def on_start(self, context: RunContext) -> None:
        self.ready = context.classes is not None
        self.tests = self.ready and _can_test(context)
        if self.ready:  # a warm-up that is too long is reported before the first step
            self._training(context, 256).schedule_for(self.options.lr, context.progress.steps_per_epoch)

    def on_step(self, context: RunContext) -> None:
        features, labels = context.step_features, context.step_labels
        if not self.ready or features is None or labels is None:
            return
        if len(features) != len(labels):
            log.info("online probe: off, the method does not return one feature per image")
            self.ready = False
            return
        x = distributed.all_gather(features.detach().float())
        y = distributed.all_gather(labels)
        if self.probe is None:
            self._build(context, x)
        assert self.probe is not None
        self.scheduled.prepare(context.progress.step - 1)
        # A step that the GradScaler skips may have features that are not finite; they must not stay in the weights.
        x = torch.where(x.isfinite().all(), x, torch.zeros_like(x))
        self.probe.train()
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            scores = self.probe(x)
            loss = F.cross_entropy(scores, y)
            gradients = torch.autograd.grad(loss, list(self.probe.parameters()))
        for parameter, gradient in zip(self.probe.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.scheduled.optimizer.step()
        self.probe.zero_grad()
        if context.is_main:
            right = [in_top(scores.detach(), y, k).float().mean() for k in self.top]
            self.sums += torch.stack([loss.detach(), *right])
            self.steps += 1

    def on_record(self, context: RunContext) -> Mapping[str, float]:
        if self.probe is None or not self.steps:
            return {}
        loss, *top = (self.sums / self.steps).tolist()
        self.sums.zero_()
        self.steps = 0
        accuracies = {f"probe_top{k}": value for k, value in zip(self.top, top, strict=True)}
        return {"probe_loss": loss, **accuracies, "probe_lr": self.scheduled.schedule(context.progress.step - 1)}

    def needs(self) -> list[tuple[Part, int | None]]:
        return [("eval", self.options.limit_eval)] if self._measures() else []

    def _measures(self) -> bool:
        """Whether there is a probe to test; one that was restored is built when it is needed."""
        return self.tests and (self.probe is not None or bool(self.restored))

    def measure(self, context: RunContext) -> tuple[dict[str, float], str]:
        if not self._measures():
            return {}, ""
        features, labels = shared_features(context, "eval", self.options.limit_eval)
        if self.probe is None:  # resumed where no step was left
            self._build(context, features)
        assert self.probe is not None
        self.probe.eval()
        with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
            scores = self.probe(features)
        metrics = {f"probe_eval_top{k}": accuracy(scores, labels, k) for k in self.top}
        first, value = next(iter(metrics.items()))
        return metrics, f"online probe {first.removeprefix('probe_eval_').replace('top', 'top-')} {value:.1%}"

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        state = super().state_dict()
        if self.probe is None:
            return {**self.restored, **state}
        state |= {MODULE + name: value for name, value in self.probe.state_dict().items()}
        for name, parameter in self.probe.named_parameters():
            for key, value in self.scheduled.optimizer.state.get(parameter, {}).items():
                state[f"{OPTIMIZER}{name}.{key}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        super().load_state_dict(state)
        self.restored = {name: value for name, value in state.items() if name != "measured_step"}

    def _training(self, context: RunContext, batch_size: int) -> Training:
        epochs = context.progress.total_steps // context.progress.steps_per_epoch
        return Training(self.options.optimizer, self.options.schedule, epochs, batch_size)

    def _build(self, context: RunContext, x: Tensor) -> None:
        """Builds classifier and optimizer for these features (N, D), and restores what a checkpoint held."""
        classes = context.classes or 1
        self.top = possible_tops(self.options.top, classes)
        probe = scaled_linear(x.shape[1], classes, self.options.standardize).to(x.device)
        training, group = self._training(context, len(x)), ParameterGroup(dict(probe.named_parameters()), "probe")
        steps = context.progress.steps_per_epoch
        self.scheduled = ScheduledOptimizer(training, self.options.lr, steps, [group], parameter_roles(probe))
        self.sums = torch.zeros(1 + len(self.top), device=x.device)
        self.probe = probe
        if self.restored and not self._restore(probe):
            log.info("online probe: starts from scratch, the checkpoint has a different kind of probe")
        self.restored = {}

    def _restore(self, probe: nn.Sequential) -> bool:
        """Takes over what a checkpoint held; False if that is the state of another kind of probe."""
        state, own = self._restored(MODULE), probe.state_dict()
        layout = {name: (getattr(value, "shape", None), getattr(value, "dtype", None)) for name, value in state.items()}
        if layout != {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}:
            return False
        optimizer = self.scheduled.optimizer
        order = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        named = {
            name: (parameter, self._restored(f"{OPTIMIZER}{name}.")) for name, parameter in probe.named_parameters()
        }
        try:
            check_stored(optimizer, named)
        except ValueError:
            return False
        probe.load_state_dict(state)
        states = {order.index(id(parameter)): found for parameter, found in named.values() if found}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return True

    def _restored(self, prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in self.restored.items() if name.startswith(prefix)}


def _can_test(context: RunContext) -> bool:
    train, test = context.labeled("train"), context.labeled("eval")
    if test is None or test.labels is None:
        return False
    same_classes = len(test.info.classes or ()) in (0, context.classes)
    return same_classes and (train is None or not same_images(train, test))
