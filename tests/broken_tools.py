"""Optimizers, schedules, evaluators, exporters, and callbacks that break one rule each, as in `broken_plugins`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from broken_plugins import broken
from torch import Tensor

from sslcli.contracts.callback import Callback, RunContext
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Published, Subject
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.optimizer import OptimizerPlugin, Schedule
from sslcli.exporters.backbone import BackboneExporter

# Optimizers


class Plain(torch.optim.Optimizer):
    """Plain gradient descent with decay, and hooks to replace."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.steps = 0
        self.first_decays = [group["weight_decay"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            self.before(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    decayed = parameter.grad + group["weight_decay"] * parameter
                    parameter.sub_(group["lr"] * self.direction(parameter, decayed))

    def before(self, group: dict[str, Any]) -> None: ...

    def direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class Descent(OptimizerPlugin):
    """A correct optimizer."""

    members: dict[str, Any] = {}

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: Any) -> torch.optim.Optimizer:
        return type("Broken", (Plain,), cls.members)(groups, options.lr)


def known_keys(cls: Any, groups: Any, options: Any) -> torch.optim.Optimizer:
    return Plain([{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups], options.lr)


def first_decay(self: Any, group: dict[str, Any]) -> None:
    group["weight_decay"] = 0.0 if group["excluded"] else max(self.first_decays)


def decay_frozen(self: Any, group: dict[str, Any]) -> None:
    torch._foreach_mul_([p for p in group["params"] if p.grad is None] or [torch.ones(1)], 0.99)


def count_frozen(self: Any, group: dict[str, Any]) -> None:
    for parameter in group["params"]:
        self.state[parameter]["count"] = self.steps


def stack_norms(self: Any, group: dict[str, Any]) -> None:
    torch.stack([parameter.grad.norm() for parameter in group["params"] if parameter.grad is not None])


OPTIMIZERS = [
    broken("DropsKeys", Descent, "drops 'names' from its param_groups", build=classmethod(known_keys)),
    broken("OwnRate", Descent, "with the groups' lr set to 0", members={
        "before": lambda self, group: group.update(lr=0.01)}),
    broken("OwnCount", Descent, "all state must be in optimizer.state", members={
        "direction": lambda self, parameter, gradient: gradient / self.steps}),
    broken("DividesByNorm", Descent, "not finite after a step with gradients of 0", members={
        "direction": lambda self, parameter, gradient: gradient / gradient.norm()}),
    broken("DecaysAll", Descent, "has weight_decay 0 and a gradient of 0, but moves", members={
        "direction": lambda self, parameter, gradient: gradient + 0.1 * parameter}),
    broken("FixedDecay", Descent, "with another weight_decay in the groups the step is the same", members={
        "before": first_decay}),
    broken("DecaysFrozen", Descent, r"a parameter without a gradient moves: .'0\.weight'", members={
        "before": decay_frozen}),
    broken("CountsFrozen", Descent, r"without a gradient the state '0\.weight\.count' changes", members={
        "before": count_frozen}),
    broken("StacksNorms", Descent, r"'0\.bias', '2\.bias'. have no gradient: RuntimeError", members={
        "before": stack_norms}),
]  # fmt: skip


# Schedules


class Constant(Schedule):
    """A correct schedule."""

    calls = 0

    def __call__(self, step: int) -> float:
        return self.base


def countdown(self: Any, step: int) -> float:
    self.calls += 1
    return self.base / self.calls


SCHEDULES = [
    broken("Countdown", Constant, "depends on which steps were asked for", __call__=countdown),
    broken("BelowZero", Constant, r"BelowZero\(11\) is -",
           __call__=lambda self, step: self.base * (1 - 2 * step / self.total_steps)),
    broken("Overshoots", Constant, "above its base", __call__=lambda self, step: self.base * (1 + step)),
    broken("WholeNumbers", Constant, "is a int, not a float", __call__=lambda self, step: 0),
]  # fmt: skip


# Evaluators


class FirstClass(Evaluator):
    """A correct evaluator: the share of the first class."""

    chooses = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        labels = subject.features("eval").labels
        assert labels is not None
        return EvaluationResult({"top1": float((labels == 0).float().mean())}, subject.describe())


def with_metrics(metrics: Any) -> Any:
    """An `evaluate` with other metrics."""
    return lambda self, subject: EvaluationResult(metrics(subject), subject.describe())


def after(change: Any) -> Any:
    """An `evaluate` that changes something first."""

    def evaluate(self: Any, subject: Subject) -> EvaluationResult:
        change(subject)
        return FirstClass.evaluate(self, subject)

    return evaluate


EVALUATORS = [
    broken("Trains", FirstClass, "changes the backbone that it evaluates",
           evaluate=after(lambda subject: subject.backbone.train()(torch.randn(4, 3, 16, 16)))),
    broken("Dice", FirstClass, "two runs with one seed", evaluate=with_metrics(lambda _: {"top1": random.random()})),
    broken("Percent", FirstClass, "accuracies are fractions between 0 and 1",
           evaluate=with_metrics(lambda _: {"top1": 25.0})),
    broken("Unsourced", FirstClass, "does not say where its values are from", protocols={"paper": Published("", {})}),
    broken("NoSuchOption", FirstClass, "the protocol 'paper' cannot be used",
           protocols={"paper": Published("paper, table 1", {"temperature": 0.1})}),
    broken("NoSuchFeature", FirstClass, "the protocol 'paper' cannot be used",
           protocols={"paper": Published("paper, table 1", {"feature": "last"})}),
    broken("NoSuchVariant", FirstClass, "the protocol 'paper' cannot be used",
           protocols={"paper": Published("paper, table 1", {"feature": "pooled"})},
           protocol_for=classmethod(lambda cls, name, spec: "paper_vit")),
    broken("Silent", FirstClass, "the protocol is empty",
           evaluate=lambda self, subject: EvaluationResult({"top1": 0.5}, {})),
    broken("Peeks", FirstClass, "before it has said what it chose", chooses=True),
    broken("Centers", FirstClass, "changed the features of the part 'eval' in place",
           evaluate=after(lambda subject: subject.features("eval").features.sub_(1))),
    broken("Unfreezes", FirstClass, "what gets gradients",
           evaluate=after(lambda subject: subject.backbone.requires_grad_(True))),
    broken("SaysUnseeded", FirstClass, "another seed changes its metrics", seeded=False,
           evaluate=with_metrics(lambda subject: {"draw": float(subject.seed)})),
    broken("NeedsNoLabels", FirstClass, "must reject data without any",
           evaluate=with_metrics(lambda subject: {"images": float(len(subject.dataset("eval")))})),
]  # fmt: skip


# Exporters


def bad_lines(self: Any, trained: Trained, path: Path) -> Exported:
    return Exported(BackboneExporter.export(self, trained, path).path, "import no_such_module_at_all")


def other_weights(self: Any, trained: Trained, path: Path) -> Exported:
    other = type(trained.backbone).build(trained.backbone.options, 3, 16).eval()
    return BackboneExporter.export(self, Trained(other, trained.card, None), path)


def no_message(self: Any, trained: Trained, path: Path) -> Exported:
    path.write_bytes(b"weights")
    return Exported(path, "")


EXPORTERS = [
    broken("BadLines", BackboneExporter, "how_to_load fail: ModuleNotFoundError", export=bad_lines),
    broken("OtherWeights", BackboneExporter, "gives other features", export=other_weights),
    broken("Nowhere", Exporter, "there is no such file", export=lambda self, trained, path: Exported(path, "")),
    broken("Traceback", Exporter, "must raise a UserError of one line", export=no_message),
]


# Callbacks


class Counter(Callback):
    """A correct callback: counts steps."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.steps = 0

    def on_step(self, context: RunContext) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = int(state["steps"])


def update_statistics(self: Any, context: RunContext) -> None:
    with torch.no_grad():
        context.encoder()(torch.randn(4, 3, 16, 16))


CALLBACKS = [
    broken("EvalMode", Counter, "leaves the encoder in another mode",
           on_epoch=lambda self, context: context.encoder().eval()),
    broken("UpdatesStatistics", Counter, "changes .*of the encoder", on_step=update_statistics),
    broken("Forgetful", Counter, "does not restore 'steps'", load_state_dict=lambda self, state: None),
    broken("NeedsStart", Counter, "before on_start: AttributeError",
           on_start=lambda self, context: setattr(self, "layers", 1), on_end=lambda self, *_: delattr(self, "layers")),
    broken("WritesEverywhere", Counter, "in a process that is not the main one",
           on_end=lambda self, context, outcome: (context.directory / "end.txt").write_text(outcome)),
    broken("NeedsLoss", Counter, "ends a run .*KeyError: 'loss'", on_log=lambda self, context, record: record["loss"]),
    broken("NoDocstring", Counter, "has no docstring", __doc__=None),
    broken("ListState", Counter, "the state 'steps' is a list", state_dict=lambda self: {"steps": [1, 2]}),
]  # fmt: skip
