"""Parameter groups by role, scaled learning rates, and setting both at each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_options import Value
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.method import Batch, Method, MethodOptions, ParameterGroup, RunInfo, Step
from sslcli.contracts.optimizer import OptimizerOptions
from sslcli.optimizers.groups import build_groups, effective_lr, set_rates, weight_decay_schedule

RUN = RunInfo(10, 5, 2, 6, 1, DataInfo("test", 3, (8, 8), (0.5,) * 3, (0.25,) * 3))
OPTIONS = OptimizerOptions(lr=0.1, weight_decay=0.01)


class Linear(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)

    @classmethod
    def build(cls, options: object, channels: int, image_size: int) -> Linear:
        return cls()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        return Features(self.norm(self.linear(x)))


class Predicting(Method):
    """A method whose predictor is a separate group; `change` modifies what `parameter_groups` returns."""

    def __init__(self) -> None:
        super().__init__(Linear(), MethodOptions(), RUN)
        self.predictor = nn.Linear(4, 4, bias=False)
        self.change = lambda groups: groups

    @classmethod
    def recipe(cls, options: object, image_size: int, spec: object) -> dict[str, object]:
        return {}

    def forward(self, batch: Batch) -> Step:
        raise AssertionError("not used")

    def parameter_groups(self) -> list[ParameterGroup]:
        main = {n: p for n, p in self.backbone.named_parameters(prefix="backbone") if p.requires_grad}
        predictor = {"predictor.weight": self.predictor.weight}
        return self.change(
            [ParameterGroup(main), ParameterGroup(predictor, "predictor", lr_multiplier=2.0, constant_lr=True)]
        )


def test_groups_are_split_by_role_and_none_is_empty() -> None:
    groups = build_groups(Predicting(), OPTIONS)
    assert [group["names"] for group in groups] == [
        ["backbone.linear.weight"],
        ["backbone.linear.bias", "backbone.norm.weight", "backbone.norm.bias"],
        ["predictor.weight"],
    ]
    assert [group["roles"] for group in groups] == [["weight"], ["bias", "norm", "norm"], ["weight"]]
    assert [group["excluded"] for group in groups] == [False, True, False]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01]
    assert [group["lr"] for group in groups] == [0.1] * 3
    assert [group["constant_lr"] for group in groups] == [False, False, True]
    assert [group["lr_multiplier"] for group in groups] == [1.0, 1.0, 2.0]
    assert len({group["name"] for group in groups}) == 3


def test_params_and_names_are_in_the_same_order_and_complete() -> None:
    method = Predicting()
    named = dict(method.named_parameters())
    groups = build_groups(method, OPTIONS)
    pairs = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
    assert all(named[name] is parameter for name, parameter in pairs)
    assert sorted(name for name, _ in pairs) == sorted(name for name in named if name != "backbone.frozen")


def test_exclude_decides_which_roles_are_excluded() -> None:
    everything = build_groups(Predicting(), OptimizerOptions(lr=0.1, weight_decay=0.01, exclude=()))
    assert [(group["excluded"], group["weight_decay"]) for group in everything] == [(False, 0.01)] * 2
    norms = build_groups(Predicting(), OptimizerOptions(lr=0.1, weight_decay=0.01, exclude=("norm",)))
    assert [group["names"] for group in norms if group["excluded"]] == [["backbone.norm.weight", "backbone.norm.bias"]]


def test_patterns_exclude_parameters_by_name_whatever_their_role() -> None:
    by_name = {"exclude": [], "exclude_names": ["*.bias", "predictor.*"]}
    groups = build_groups(Predicting(), OptimizerOptions.parse({"lr": 0.1, "weight_decay": 0.01, **by_name}))
    assert [(group["names"], group["weight_decay"]) for group in groups] == [
        (["backbone.linear.weight", "backbone.norm.weight"], 0.01),
        (["backbone.linear.bias", "backbone.norm.bias"], 0.0),
        (["predictor.weight"], 0.0),
    ]
    assert [group["excluded"] for group in groups] == [False, True, True]
    both = build_groups(Predicting(), OptimizerOptions(lr=0.1, exclude=("norm",), exclude_names=("*linear.weight",)))
    assert [group["names"] for group in both if group["excluded"]] == [
        ["backbone.linear.weight", "backbone.norm.weight", "backbone.norm.bias"]
    ]


def test_a_pattern_that_matches_no_name_is_an_error_that_shows_names() -> None:
    options = OptimizerOptions(lr=0.1, exclude_names=("*.bias", "*.bn*"))
    with pytest.raises(UserError, match=r"^optimizer.exclude_names: '\*\.bn\*' matches no parameter.*linear\.weight"):
        build_groups(Predicting(), options)
    with pytest.raises(ValueError, match="exclude_names"):
        OptimizerOptions.parse({"lr": 0.1, "exclude_names": [""]})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda groups, frozen: groups[:1], r"Predicting.*'predictor\.weight' is left out"),
        (lambda groups, frozen: [*groups, groups[1]], r"'predictor\.weight' appears twice"),
        (
            lambda groups, frozen: [*groups, ParameterGroup({"backbone.frozen": frozen}, "tail")],
            r"'backbone\.frozen' in 'tail' is not a trainable parameter",
        ),
        (
            lambda groups, frozen: [*groups, ParameterGroup({"predictor.weight": nn.Parameter(torch.zeros(2))})],
            r"'predictor\.weight' in 'main' is not a trainable parameter",
        ),
    ],
    ids=["left out", "twice", "frozen", "foreign"],
)
def test_groups_must_hold_every_trainable_parameter_exactly_once(change: Any, problem: str) -> None:
    method = Predicting()
    method.change = lambda groups: change(groups, method.backbone.frozen)
    with pytest.raises(SslError, match=problem):
        build_groups(method, OPTIONS)


@pytest.mark.parametrize(("scale", "expected"), [("none", 0.3), ("batch/256", 4.8), ("sqrt", 19.2)])
def test_the_learning_rate_is_scaled_with_the_batch(scale: str, expected: float) -> None:
    options = OptimizerOptions.parse({"lr": 0.3, "scale_lr": scale})
    assert effective_lr(options, 4096) == pytest.approx(expected)


def test_groups_get_the_schedules_value_except_constant_ones_and_excluded_ones_keep_no_weight_decay() -> None:
    optimizer = torch.optim.SGD(build_groups(Predicting(), OPTIONS), lr=0.1)
    set_rates(optimizer, 1, Value(0.25, base=0.8), lambda step: 0.5 / (step + 1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25, 1.6]
    assert [(group["excluded"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (False, 0.25),
        (True, 0.0),
        (False, 0.25),
    ]


def test_a_learning_rate_fills_a_tensor_in_place_and_accepts_plain_groups() -> None:
    lr = torch.tensor(1.0)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=lr, foreach=False, capturable=False)
    optimizer.param_groups[0]["lr"] = lr
    set_rates(optimizer, 0, Value(0.5), None)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_weight_decay_matches_a_table_computed_by_hand() -> None:
    """DINO's: 0.4 − 0.36·(1 + cos(π·t/6))/2, with cos 30° = 0.8660254."""
    schedule = weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.04, final_weight_decay=0.4), 6)
    assert schedule is not None
    table = [0.04, 0.0641154, 0.13, 0.22, 0.31, 0.3758846]
    assert [schedule(step) for step in range(6)] == pytest.approx(table, abs=1e-7)
    assert schedule(6) == pytest.approx(0.4)  # one step after the last


def test_weight_decay_can_fall_to_0_and_has_no_schedule_if_it_is_constant() -> None:
    falling = weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.2, final_weight_decay=0.0), 4)
    assert falling is not None
    assert [falling(step) for step in (0, 2, 4)] == pytest.approx([0.2, 0.1, 0.0])
    assert weight_decay_schedule(OPTIONS, 4) is None
    assert weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.2, final_weight_decay=0.2), 4) is None
