"""Checks of methods, on a small backbone and on the views that the method's own recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.schema import TrainingOptions
from sslcli.config.views_section import resolve_views
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import SslError
from sslcli.contracts.method import Batch, Method, MethodOptions, Progress, RunInfo, Step, View
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import load
from sslcli.runs import files
from sslcli.training.state import load_optimizer_state, named_optimizer_state
from sslcli.views.pipeline import ViewMaker

from .common import changed, check_options, require, snapshot
from .stand_ins import CLASSES, MEAN, STD, SmallBackbone, pixels

STEPS, PER_EPOCH = 6, 3


def check_method(
    cls: type[Method],
    options: Mapping[str, Any] | None = None,
    *,
    backbone: Callable[[], Backbone] | None = None,
    image_size: int = 16,
    batch_size: int = 8,
    device: str = "cpu",
) -> None:
    """Checks recipe, gradients, what a step reports and changes, accumulation, chance, and resuming.

    Args:
        cls: the class.
        options: plain data; small heads make it fast.
        backbone: builds what to train, for methods that want a certain kind; every weight of it that requires a
            gradient must get one in the first step (no branch that starts at zero).
        image_size: side of the views in pixels.
        batch_size: images in a step, even.
        device: `cuda` checks also that a step does not wait for the device.

    Raises:
        AssertionError: with what is wrong.
    """
    _Bench(cls, options, backbone or (lambda: SmallBackbone(3, 16)), image_size, batch_size, device).check()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Bench:
    def __init__(
        self,
        cls: type[Method],
        options: Mapping[str, Any] | None,
        backbone: Callable[[], Backbone],
        image_size: int,
        batch_size: int,
        device: str,
    ) -> None:
        self.cls, self.label, self.backbone = cls, cls.__name__, backbone
        self.size, self.count, self.device = image_size, batch_size, torch.device(device)
        self.options = check_options(cls, options, MethodOptions)
        self.views = self._views()
        data = DataInfo("memory", 3, (image_size, image_size), (MEAN,) * 3, (STD,) * 3, CLASSES)
        self.run = RunInfo(STEPS, PER_EPOCH, STEPS // PER_EPOCH, batch_size, 1, data)

    def check(self) -> None:
        self._check_defaults()
        self._check_gradients()
        self._check_reports()
        self._check_changes()
        self._check_accumulation()
        self._check_chance()
        self._check_resuming()
        if self.device.type == "cuda":
            self._check_waiting()

    def _views(self) -> ViewMaker:
        recipe = self.cls.recipe(self.options, self.size)
        problems = Problems(Document({}, {(): f"{self.label}.recipe"}))
        specs = resolve_views(None, recipe, self.size, problems)
        require(not problems.lines, f"{self.label}.recipe cannot be resolved: {'; '.join(problems.lines)}")
        views, wanted = sum(spec.count for spec in specs), self.cls.view_count
        require(wanted in (None, views), f"{self.label}.recipe has {views} views, its view_count is {wanted}")
        return ViewMaker(specs, 3, (MEAN,) * 3, (STD,) * 3, seed=0)

    def build(self, seed: int = 0) -> Method:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.cls(self.backbone(), self.options, self.run).to(self.device).train()

    def batch(self, method: Method, step: int, part: slice = slice(None)) -> Batch:
        """The images of a step, or of one of its micro-batches."""
        positions = torch.arange(self.count)[part]
        images = pixels(self.count, 3, self.size, self.size, seed=step)[part]
        sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
        draws = self.views.draw(step // PER_EPOCH, positions + step * self.count, sizes).to(self.device)
        views = [View(view) for view in self.views.apply([images.to(self.device)], draws)]
        labels = (positions % len(CLASSES)).to(self.device)
        schedule = {
            name: torch.full((), function(step), dtype=torch.float32, device=self.device)
            for name, function in method.schedules().items()
        }
        return Batch(views, labels, positions, schedule)

    def optimizer(self, method: Method) -> torch.optim.Optimizer:
        sgd = load("optimizers", "sgd")
        options = sgd.Options.parse({"lr": 0.05, "weight_decay": 1e-4})
        try:
            groups = build_groups(method, options)
        except SslError as error:
            raise AssertionError(str(error)) from error
        optimizer: torch.optim.Optimizer = sgd.build(groups, options)
        return optimizer

    def train(self, method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
        """Makes steps as the loop does; returns their losses."""
        losses = []
        for step in range(first, last):
            torch.manual_seed(step)
            found = method(self.batch(method, step))
            torch.autograd.backward(found.loss)
            self._update(method, optimizer, step, [found])
            losses.append(found.loss.detach())
        return losses

    def _update(self, method: Method, optimizer: torch.optim.Optimizer, step: int, found: list[Step]) -> None:
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step([each.carry for each in found], Progress(step + 1, STEPS, PER_EPOCH))

    def _check_defaults(self) -> None:
        for section, values in self.cls.defaults.items():
            known = ("optimizer", "schedule", "training")
            require(section in known, f"{self.label}.defaults: there is no such section as {section!r}")
            try:
                plain = dict(values)
                if section == "training":
                    TrainingOptions.parse(plain)
                    continue
                load(f"{section}s", plain.pop("name")).Options.parse(plain)
            except (SslError, ValueError, KeyError) as error:
                raise AssertionError(f"{self.label}.defaults[{section!r}] is not valid: {_line(error)}") from error

    def _check_gradients(self) -> None:
        method = self.build()
        found = method(self.batch(method, 0))
        require(isinstance(found, Step), f"{self.label}.forward returns {type(found).__name__}, not Step")
        require(
            found.loss.shape == () and found.loss.dtype == torch.float32,
            f"{self.label}: the loss must be 0-dim float32, not {found.loss.dtype} {tuple(found.loss.shape)}",
        )
        require(bool(found.loss.isfinite()), f"{self.label}: the loss of the first step is {found.loss.item()}")
        require(found.loss.requires_grad, f"{self.label}: the loss has no gradient")
        torch.autograd.backward(found.loss)
        trained = {id(parameter) for parameter in method.backbone.parameters()}
        for name, parameter in method.named_parameters():
            if not parameter.requires_grad:
                require(parameter.grad is None, f"{self.label}: {name} is not trained, and gets a gradient")
                continue
            gradient = parameter.grad
            require(gradient is not None, f"{self.label}: no gradient reaches {name}; freeze it, or use it in the loss")
            if id(parameter) in trained and gradient is not None:
                require(bool(gradient.abs().sum() > 0), f"{self.label}: the gradient of {name} is 0 everywhere")
        encoder = method.encoder()
        require(
            isinstance(encoder, Backbone) and any(encoder is module for module in method.modules()),
            f"{self.label}.encoder() must be a Backbone within the method",
        )

    def _check_reports(self) -> None:
        method = self.build()
        found = method(self.batch(method, 0))
        for name, value in found.metrics.items():
            good = isinstance(value, Tensor) and value.shape == () and not value.requires_grad
            require(good, f"{self.label}: the metric {name!r} must be a detached 0-dim tensor")
            require(bool(value.isfinite()), f"{self.label}: the metric {name!r} is {value.item()}")
        for name, value in found.carry.items():
            require(not value.requires_grad, f"{self.label}: carry[{name!r}] must be detached")
        if found.features is not None:
            shape = (self.count, method.encoder().spec.feature_dim)
            require(not found.features.requires_grad, f"{self.label}: Step.features must be detached")
            require(
                tuple(found.features.shape) == shape,
                f"{self.label}: Step.features is {tuple(found.features.shape)}, not {shape}: one view's",
            )

    def _check_changes(self) -> None:
        method = self.build()
        before = snapshot(method)
        method(self.batch(method, 0))
        # What owns running statistics may update them; everything else waits for `after_step`.
        norms = [name for name, module in method.named_modules() if hasattr(module, "running_mean")]
        lost = [n for n in changed(before, snapshot(method)) if n.rpartition(".")[0] not in norms]
        require(not lost, f"{self.label}.forward changes {lost[:1]}; state changes in after_step only")
        before = snapshot(method.eval())
        with torch.no_grad():
            batch = self.batch(method, 1)
            method.encoder()(batch.views[0].image)
            method(batch)
        lost = changed(before, snapshot(method))
        require(not lost, f"{self.label}: a pass in eval() changes {lost[:1]}")

    def _check_accumulation(self) -> None:
        method = self.build()
        optimizer, half = self.optimizer(method), self.count // 2
        for step in range(2):
            found = [method(self.batch(method, step, part)) for part in (slice(0, half), slice(half, None))]
            torch.autograd.backward(torch.stack([each.loss for each in found]).mean())
            self._update(method, optimizer, step, found)
        bad = [name for name, tensor in snapshot(method).items() if not bool(tensor.isfinite().all())]
        require(not bad, f"{self.label}: after steps of two micro-batches {bad[:1]} is not finite")

    def _check_chance(self) -> None:
        first, second = self.build(), self.build()
        different = changed(snapshot(first), snapshot(second))
        require(not different, f"{self.label}: built twice from one seed, {different[:1]} differs")
        losses = self.train(first, self.optimizer(first), 0, 3)
        again = self.train(second, self.optimizer(second), 0, 3)
        require(torch.equal(torch.stack(losses), torch.stack(again)), f"{self.label}: equal seeds, other losses")

    def _check_resuming(self) -> None:
        whole = self.build()
        optimizer = self.optimizer(whole)
        self.train(whole, optimizer, 0, 2)
        try:
            state = files.snapshot(whole.state_dict())
        except ValueError as error:
            raise AssertionError(f"{self.label} cannot be saved: {error}") from error
        moments = {name: value.clone() for name, value in named_optimizer_state(optimizer, whole).items()}
        fresh = self.build(seed=1)
        fresh.load_state_dict({name: tensor.to(self.device) for name, tensor in state.items()}, strict=True)
        resumed = self.optimizer(fresh)
        load_optimizer_state(resumed, fresh, moments)
        rest, again = self.train(whole, optimizer, 2, STEPS), self.train(fresh, resumed, 2, STEPS)
        said = "state that is no parameter and no buffer?"
        if self.device.type == "cpu":  # elsewhere kernels may add up in another order each time
            require(torch.equal(torch.stack(rest), torch.stack(again)), f"{self.label}: resumed, other losses; {said}")
            lost = changed(snapshot(whole), snapshot(fresh))
            require(not lost, f"{self.label}: resumed, {lost[:1]} ends elsewhere; {said}")

    def _check_waiting(self) -> None:
        method = self.build()
        optimizer, batch = self.optimizer(method), self.batch(method, 0)
        for step in range(2):
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may set libraries up
            try:
                found = method(batch)
                torch.autograd.backward(found.loss)
                self._update(method, optimizer, step, [found])
            except RuntimeError as error:
                raise AssertionError(f"{self.label}: a step waits for the device: {error}") from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
