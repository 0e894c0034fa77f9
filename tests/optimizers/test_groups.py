"""Parameter groups by role, scaled learning rates, and setting them step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import SslError
from sslcli.contracts.method import Batch, Method, MethodOptions, ParameterGroup, RunInfo, Step
from sslcli.contracts.optimizer import OptimizerOptions
from sslcli.optimizers.groups import build_groups, effective_lr, set_lr, set_weight_decay, weight_decay_schedule

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
    """A method whose predictor is a group of its own; `change` alters what it says of its groups."""

    def __init__(self) -> None:
        super().__init__(Linear(), MethodOptions(), RUN)
        self.predictor = nn.Linear(4, 4, bias=False)
        self.change = lambda groups: groups

    @classmethod
    def recipe(cls, options: object, image_size: int) -> dict[str, object]:
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


def test_params_and_names_stand_in_the_same_order_and_hold_every_trainable_parameter_once() -> None:
    method = Predicting()
    named = dict(method.named_parameters())
    groups = build_groups(method, OPTIONS)
    pairs = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
    assert all(named[name] is parameter for name, parameter in pairs)
    assert sorted(name for name, _ in pairs) == sorted(name for name in named if name != "backbone.frozen")


def test_exclude_decides_which_roles_are_excluded() -> None:
    everything = build_groups(Predicting(), OptimizerOptions(lr=0.1, weight_decay=0.01, exclude=()))
    assert [group["excluded"] for group in everything] == [False, False]
    norms = build_groups(Predicting(), OptimizerOptions(lr=0.1, weight_decay=0.01, exclude=("norm",)))
    assert [group["names"] for group in norms if group["excluded"]] == [["backbone.norm.weight", "backbone.norm.bias"]]


def test_a_method_that_leaves_a_parameter_out_is_told_which() -> None:
    method = Predicting()
    method.change = lambda groups: groups[:1]
    with pytest.raises(SslError, match=r"Predicting.*'predictor\.weight' is left out"):
        build_groups(method, OPTIONS)


def test_a_method_that_names_a_parameter_twice_is_told_which() -> None:
    method = Predicting()
    method.change = lambda groups: [*groups, groups[1]]
    with pytest.raises(SslError, match=r"'predictor\.weight' is there twice"):
        build_groups(method, OPTIONS)


def test_a_frozen_or_foreign_parameter_is_refused() -> None:
    method = Predicting()
    frozen = ParameterGroup({"backbone.frozen": method.backbone.frozen}, "tail")
    method.change = lambda groups: [*groups, frozen]
    with pytest.raises(SslError, match=r"'backbone\.frozen' in 'tail' is not a trainable parameter"):
        build_groups(method, OPTIONS)
    method.change = lambda groups: [*groups, ParameterGroup({"predictor.weight": nn.Parameter(torch.zeros(2))})]
    with pytest.raises(SslError, match=r"'predictor\.weight' in 'main' is not a trainable parameter"):
        build_groups(method, OPTIONS)


@pytest.mark.parametrize(("scale", "expected"), [("none", 0.3), ("batch/256", 4.8), ("sqrt", 19.2)])
def test_the_learning_rate_is_scaled_with_the_batch(scale: str, expected: float) -> None:
    options = OptimizerOptions.parse({"lr": 0.3, "scale_lr": scale})
    assert effective_lr(options, 4096) == pytest.approx(expected)


def test_set_lr_follows_the_schedule_but_in_constant_groups() -> None:
    optimizer = torch.optim.SGD(build_groups(Predicting(), OPTIONS), lr=0.1)
    value = set_lr(optimizer, lambda step: 0.5 / (step + 1), 1, base_lr=0.8)
    assert value == 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25, 1.6]


def test_set_lr_fills_a_tensor_in_place_and_takes_bare_groups() -> None:
    lr = torch.tensor(1.0)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=lr, foreach=False, capturable=False)
    optimizer.param_groups[0]["lr"] = lr
    set_lr(optimizer, lambda step: 0.5, 0, base_lr=1.0)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_the_weight_decay_has_the_values_of_a_table_made_by_hand() -> None:
    """DINO's: 0.4 − 0.36·(1 + cos(π·t/6))/2, with cos 30° = 0.8660254."""
    schedule = weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.04, final_weight_decay=0.4), 6)
    assert schedule is not None
    table = [0.04, 0.0641154, 0.13, 0.22, 0.31, 0.3758846]
    assert [schedule(step) for step in range(6)] == pytest.approx(table, abs=1e-7)
    assert schedule(6) == pytest.approx(0.4)  # one step after the last


def test_the_weight_decay_can_fall_to_nothing_and_without_a_change_there_is_no_schedule() -> None:
    falling = weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.2, final_weight_decay=0.0), 4)
    assert falling is not None
    assert [falling(step) for step in (0, 2, 4)] == pytest.approx([0.2, 0.1, 0.0])
    assert weight_decay_schedule(OPTIONS, 4) is None
    assert weight_decay_schedule(OptimizerOptions(lr=0.1, weight_decay=0.2, final_weight_decay=0.2), 4) is None


def test_set_weight_decay_leaves_excluded_groups_at_zero() -> None:
    optimizer = torch.optim.SGD(build_groups(Predicting(), OPTIONS), lr=0.1)
    assert set_weight_decay(optimizer, lambda step: 0.5 / (step + 1), 1) == 0.25
    assert [(group["excluded"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (False, 0.25),
        (True, 0.0),
        (False, 0.25),
    ]


def test_with_nothing_excluded_everything_decays() -> None:
    """MoCo v1 and v2, SimSiam, SupCon and SwAV."""
    options = OptimizerOptions(lr=0.1, weight_decay=0.01, exclude=())
    assert [group["weight_decay"] for group in build_groups(Predicting(), options)] == [0.01, 0.01]
