"""Checks of methods, on a small backbone and on the views of the method's own recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sslcli.config.schema import TrainingOptions
from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import SslError
from sslcli.contracts.method import Batch, DrawKeys, Method, MethodOptions, Progress, RunInfo, Step, View
from sslcli.contracts.views import ViewSpec
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import load
from sslcli.runs import files
from sslcli.training.state import frozen_state, load_optimizer_state, named_optimizer_state
from sslcli.views.pipeline import ViewMaker

from .augmentations import check_views
from .common import check_options, kind, reported, require, require_finite, require_is, require_same, snapshot
from .stand_ins import CLASSES, MEAN, STD, SmallBackbone, pixels, sizes_of, small_vit

STEPS, PER_EPOCH, PATCH = 6, 3, 16
#: The networks for which recipes and defaults are checked, and their options.
PLAIN: dict[str, dict[str, Any]] = {"resnet18": {}, "vit_tiny": {"patch_size": PATCH}}
#: What `Method.defaults` may have.
SECTIONS = ("optimizer", "schedule", "training", "backbone")


def check_method(cls: type[Method], options: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """Checks recipe, gradients, what a step reports and changes, accumulation, randomness, and resuming.

    Args:
        options: plain data; small heads make it fast.
        settings: further arguments of `MethodTrial`; with `device="cuda"` a step must not wait for the device.

    Raises:
        AssertionError: with what is wrong.
    """
    trial = MethodTrial(cls, options, **settings)
    _check_defaults(trial)
    _check_step(trial)
    _check_changes(trial)
    _check_frozen(trial)
    _check_accumulation(trial)
    _check_randomness(trial)
    _check_resuming(trial)
    if trial.device.type == "cuda":
        _check_waiting(trial)


class MethodTrial:
    """A method on a small backbone, with random images, driven as the loop does; AssertionError for wrong options.

    Args:
        options: plain data.
        backbone: builds what to train, for methods that need a certain kind; every weight of it that requires a
            gradient must get one in the first step (no branch that is 0 at first). None: a small network, for a method
            that needs a ViT one with patches of 4 pixels.
        image_size: side of the views in pixels.
        batch_size: images in a step, even.
        device: where everything is.
    """

    def __init__(
        self,
        cls: type[Method],
        options: Mapping[str, Any] | None = None,
        *,
        backbone: Callable[[], Backbone] | None = None,
        image_size: int = 16,
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        self.cls, self.label = cls, cls.__name__
        self.backbone = backbone or (small_vit if "ViT" in cls.needs else lambda: SmallBackbone(3, 16))
        self.size, self.count, self.device = image_size, batch_size, torch.device(device)
        self.options = check_options(cls, options, MethodOptions)
        self.spec = self.backbone().spec
        specs = self.recipe(image_size, self.spec)
        views = sum(spec.count for spec in specs)
        require_is(f"{self.label}: the recipe's number of views", views, cls.view_count or views)
        self.views = ViewMaker(specs, 3, (MEAN,) * 3, (STD,) * 3, seed=0)
        self.made: dict[tuple[int, int, int], list[Tensor]] = {}
        data = DataInfo("memory", 3, (image_size, image_size), (MEAN,) * 3, (STD,) * 3, CLASSES)
        self.run = RunInfo(STEPS, PER_EPOCH, STEPS // PER_EPOCH, batch_size, 1, data, tuple(self.views.sizes))

    def recipe(self, size: int, spec: BackboneSpec) -> tuple[ViewSpec, ...]:
        """The recipe's views for a backbone, whose sides it takes."""
        label = f"{self.label}.recipe"
        with reported(f"{label} failed"):
            recipe = self.cls.recipe(self.options, size, spec)
        specs = check_views(label, dict(recipe) if isinstance(recipe, Mapping) else list(recipe), size)
        for side in (view.size for view in specs):
            good = side >= spec.minimum_size and side % spec.size_multiple == 0
            multiples = f"takes {spec.minimum_size} or more, in multiples of {spec.size_multiple}"
            require(good, f"{label} has views of {side} px; the backbone {multiples}")
        return specs

    def build(self, seed: int = 0) -> Method:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            method = self.cls(self.backbone(), self.options, self.run)
            with reported(f"{self.label}.frozen names what is not a module of it", AttributeError):
                method.freeze()
            return method.to(self.device).train()

    def batch(self, method: Method, step: int, part: slice = slice(None)) -> Batch:
        """The images of a step, or of one of its micro-batches."""
        positions = torch.arange(self.count)[part]
        key = (step, int(positions[0]), len(positions))
        if key not in self.made:  # checks look at the same batches again
            images = pixels(self.count, 3, self.size, self.size, seed=step)[part]
            draws = self.views.draw(step // PER_EPOCH, positions + step * self.count, sizes_of(images)).to(self.device)
            self.made[key] = self.views.apply([images.to(self.device)], draws)
        views = [View(view.clone()) for view in self.made[key]]
        labels = (positions % len(CLASSES)).to(self.device)
        schedule = {
            name: torch.full((), function(step), dtype=torch.float32, device=self.device)
            for name, function in method.schedules().items()
        }
        keys = DrawKeys(0, step, step // PER_EPOCH, positions + step * self.count)
        return Batch(views, labels, positions, schedule, keys)

    def optimizer(self, method: Method) -> torch.optim.Optimizer:
        sgd = load("optimizers", "sgd")
        options = sgd.Options.parse({"lr": 0.05, "weight_decay": 1e-4})
        with reported("groups", SslError):
            groups = build_groups(method, options)
        return sgd.build(groups, options)

    def train(self, method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> Tensor:
        """Runs the steps with the indices `first` to `last` − 1; returns their losses, all of them finite."""
        losses = []
        for step in range(first, last):
            torch.manual_seed(step)
            losses.append(self.step(method, optimizer, step, [self.batch(method, step)]))
            require(losses[-1].isfinite(), f"{self.label}: the loss of step {step + 1} is {losses[-1].item()}")
        return torch.stack(losses)

    def step(self, method: Method, optimizer: torch.optim.Optimizer, step: int, batches: list[Batch]) -> Tensor:
        """Runs one step on its micro-batches; returns their mean loss."""
        found = [method(batch) for batch in batches]
        loss = torch.stack([each.loss for each in found]).mean()
        torch.autograd.backward(loss)
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step([each.carry for each in found], Progress(step + 1, STEPS, PER_EPOCH))
        return loss.detach()


@functools.cache
def _plain_spec(name: str, size: int) -> BackboneSpec:
    cls = load("backbones", name)
    return cls.describe(cls.Options.parse(PLAIN[name]), 3, size)


def _check_defaults(trial: MethodTrial) -> None:
    """Recipe and defaults are valid for a convolutional network and for vision transformers."""
    networks = {name: load("backbones", name) for name in PLAIN}
    known = {type(trial.backbone()), *networks.values()}
    for name, cls in networks.items():
        for size in (4 * PATCH, 16 * PATCH):
            spec = _plain_spec(name, size)
            trial.recipe(size, spec)
        label = f"{trial.label}.defaults"
        with reported(f"{label} failed"):
            sections = trial.cls.defaults(trial.options, spec)
        for section, values in sections.items():
            require(section in SECTIONS, f"{label}: there is no section {section!r}; it may have {', '.join(SECTIONS)}")
            with reported(f"{label}: {section!r} is not valid", (SslError, ValueError, KeyError)):
                plain = dict(values)
                if section != "backbone":
                    model = TrainingOptions if section == "training" else load(f"{section}s", plain.pop("name")).Options
                    model.parse(plain)
                    continue
                for option in plain:
                    found = any(option in each.Options.model_fields for each in known)
                    require(found, f"{label}: no backbone has the option {option!r}")
                plain = {key: value for key, value in plain.items() if key in cls.Options.model_fields}
                changed = cls.describe(cls.Options.parse({**PLAIN[name], **plain}), 3, size)
                require(changed == spec, f"{label}: the options for the backbone {name!r} change its spec")


def _check_step(trial: MethodTrial) -> None:
    label, method = trial.label, trial.build()
    found = method(trial.batch(method, 0))
    require(isinstance(found, Step), f"{label}.forward returns {type(found).__name__}, not Step")
    require_is(f"{label}: the loss", kind(found.loss), "torch.float32 ()")
    require(found.loss.isfinite(), f"{label}: the loss of the first step is {found.loss.item()}")
    require(found.loss.requires_grad, f"{label}: the loss has no gradient")
    torch.autograd.backward(found.loss)
    in_backbone = {id(parameter) for parameter in method.backbone.parameters()}
    for name, parameter in method.named_parameters():
        gradient = parameter.grad
        if not parameter.requires_grad:
            require(gradient is None, f"{label}: {name} is not trained, but gets a gradient")
            continue
        require(gradient is not None, f"{label}: no gradient reaches {name}; freeze it, or use it in the loss")
        if id(parameter) in in_backbone and gradient is not None:
            require(gradient.any(), f"{label}: the gradient of {name} is 0 everywhere")
    encoder = method.encoder()
    good = isinstance(encoder, Backbone) and any(encoder is module for module in method.modules())
    require(good, f"{label}.encoder() must be a Backbone within the method")
    for name, value in found.metrics.items():
        good = isinstance(value, Tensor) and value.shape == () and not value.requires_grad
        require(good, f"{label}: the metric {name!r} must be a detached 0-dim tensor")
        require(value.isfinite(), f"{label}: the metric {name!r} is {value.item()}")
    for name, value in found.carry.items():
        require(not value.requires_grad, f"{label}: carry[{name!r}] must be detached")
    if found.features is not None:
        shape, expected = tuple(found.features.shape), (trial.count, encoder.spec.feature_dim)
        require(not found.features.requires_grad, f"{label}: Step.features must be detached")
        require_is(f"{label}: the shape of Step.features", shape, expected)


def _check_changes(trial: MethodTrial) -> None:
    label, method = trial.label, trial.build()
    # What owns running statistics may update them; everything else waits for `after_step`.
    norms = [name for name, module in method.named_modules() if hasattr(module, "running_mean")]

    def state() -> dict[str, Tensor]:
        return {n: tensor for n, tensor in snapshot(method).items() if n.rpartition(".")[0] not in norms}

    before = state()
    method(trial.batch(method, 0))
    require_same(before, state(), f"{label}.forward changes {{}}; state changes in after_step only")
    before, batch = snapshot(method.eval()), trial.batch(method, 1)
    with torch.no_grad():
        method.encoder()(batch.views[0].image)
        method(batch)
    require_same(before, snapshot(method), f"{label}: a pass in eval() changes {{}}")


def _check_frozen(trial: MethodTrial) -> None:
    method = trial.build()
    optimizer = trial.optimizer(method)
    for name in trial.cls.frozen:
        still = not any(part.training for part in method.get_submodule(name).modules())
        require(still, f"{trial.label}: {name} is frozen, but in train(); does `train` call super().train?")
    before = {name: value.clone() for name, value in frozen_state(method).items()}
    trial.train(method, optimizer, 0, STEPS)
    require_same(before, frozen_state(method), f"{trial.label}: {{}} is frozen, but training changes it")
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in method.named_parameters():
        if name in before:
            require(id(parameter) not in trained, f"{trial.label}: {name} is frozen, but the optimizer has it")


def _check_accumulation(trial: MethodTrial) -> None:
    method = trial.build()
    optimizer, half = trial.optimizer(method), trial.count // 2
    for step in range(2):
        parts = [trial.batch(method, step, part) for part in (slice(0, half), slice(half, None))]
        trial.step(method, optimizer, step, parts)
    require_finite(snapshot(method), f"{trial.label}: after steps of two micro-batches {{}} is not finite")


def _check_randomness(trial: MethodTrial) -> None:
    first, second = trial.build(), trial.build()
    require_same(snapshot(first), snapshot(second), f"{trial.label}: built twice from one seed, {{}} differs")
    losses, again = (trial.train(method, trial.optimizer(method), 0, 3) for method in (first, second))
    require(torch.equal(losses, again), f"{trial.label}: equal seeds give different losses")


def _check_resuming(trial: MethodTrial) -> None:
    whole = trial.build()
    optimizer = trial.optimizer(whole)
    trial.train(whole, optimizer, 0, 2)
    with reported(f"{trial.label} cannot be saved", ValueError):
        state = files.snapshot(whole.state_dict())
    moments = {name: value.clone() for name, value in named_optimizer_state(optimizer, whole).items()}
    fresh = trial.build(seed=1)
    fresh.load_state_dict({name: tensor.to(trial.device) for name, tensor in state.items()}, strict=True)
    resumed = trial.optimizer(fresh)
    load_optimizer_state(resumed, fresh, moments)
    rest, again = trial.train(whole, optimizer, 2, STEPS), trial.train(fresh, resumed, 2, STEPS)
    if trial.device.type == "cpu":  # elsewhere kernels may sum in another order each time
        hint = "is there state that is neither parameter nor buffer?"
        require(torch.equal(rest, again), f"{trial.label}: a resumed run has other losses; {hint}")
        require_same(snapshot(whole), snapshot(fresh), f"{trial.label}: a resumed run ends with another {{}}; {hint}")


def _check_waiting(trial: MethodTrial) -> None:
    method = trial.build()
    optimizer, batch = trial.optimizer(method), trial.batch(method, 0)
    for step in range(2):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may set libraries up
        try:
            with reported(f"{trial.label}: a step waits for the device", RuntimeError):
                trial.step(method, optimizer, step, [batch])
        finally:
            torch.cuda.set_sync_debug_mode("default")
