"""The momentum encoder: the values of its schedule, what moves and what does not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Features
from sslcli.contracts.method import Progress
from sslcli.modules.momentum import MomentumEncoder, MomentumOptions


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Features:
        return Features(pooled=self.norm(self.linear(x)))


def pair() -> tuple[Tiny, nn.Linear, MomentumEncoder]:
    torch.manual_seed(0)
    backbone, projector = Tiny().double(), nn.Linear(3, 2).double()
    return backbone, projector, MomentumEncoder(backbone=backbone, projector=projector)


def shake(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))


def momentum_at(step: int, **options: float) -> float:
    return MomentumOptions(**options).momentum_at(Progress(step, 100, 10))


@pytest.mark.parametrize(
    ("final", "values"),
    [
        (1.0, [0.99, 1 - 0.01 * (1 + math.sqrt(0.5)) / 2, 0.995, 1 - 0.01 * (1 - math.sqrt(0.5)) / 2, 1, 1]),
        (0.999, [0.99, 0.9913180195, 0.9945, 0.9976819805, 0.999, 0.999]),
    ],
)
def test_momentum_has_the_formulas_values(final: float, values: list[float]) -> None:
    found = [momentum_at(step, momentum=0.99, final_momentum=final) for step in (0, 25, 50, 75, 100, 130)]
    assert found == pytest.approx(values, abs=1e-10)


def test_momentum_is_exactly_constant_where_it_ends_as_it_starts() -> None:
    assert all(momentum_at(step, momentum=0.999, final_momentum=0.999) == 0.999 for step in range(109))


def test_momentum_copy_starts_as_the_online_network() -> None:
    backbone, projector, momentum_encoder = pair()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(momentum_encoder(x), projector(backbone(x).pooled))


def test_update_is_the_moving_average_of_every_parameter() -> None:
    backbone, projector, momentum_encoder = pair()
    shake(backbone, projector)
    before = copy.deepcopy(momentum_encoder)
    momentum_encoder.follow(backbone=backbone, projector=projector, value=0.9)
    for module, old, new in (
        (backbone, before.backbone, momentum_encoder.backbone),
        (projector, before.projector, momentum_encoder.projector),
    ):
        was, now = dict(old.named_parameters()), dict(new.named_parameters())
        for name, online in module.named_parameters():
            for w, a, b in zip(online.flatten(), was[name].flatten(), now[name].flatten(), strict=True):
                assert b.item() == pytest.approx(0.9 * a.item() + 0.1 * w.item(), abs=1e-14), name


def test_update_with_momentum_zero_copies_and_with_one_changes_nothing() -> None:
    backbone, projector, momentum_encoder = pair()
    shake(backbone, projector)
    before = [p.clone() for p in momentum_encoder.parameters()]
    momentum_encoder.follow(backbone=backbone, projector=projector, value=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, momentum_encoder.parameters(), strict=True))
    momentum_encoder.follow(backbone=backbone, projector=projector, value=0.0)
    online = [*backbone.parameters(), *projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(online, momentum_encoder.parameters(), strict=True))


def test_update_leaves_the_copys_own_batch_norm_statistics() -> None:
    backbone, projector, momentum_encoder = pair()
    backbone.norm.running_mean.fill_(7)
    momentum_encoder.follow(backbone=backbone, projector=projector, value=0.5)
    assert torch.equal(momentum_encoder.backbone.norm.running_mean, torch.zeros(3, dtype=torch.float64))


def test_copy_in_training_mode_keeps_statistics_of_its_own_batches() -> None:
    backbone, _, momentum_encoder = pair()
    momentum_encoder(torch.randn(5, 4, dtype=torch.float64) + 3)
    assert not torch.equal(momentum_encoder.backbone.norm.running_mean, backbone.norm.running_mean)


def test_copy_takes_no_gradient() -> None:
    _, _, momentum_encoder = pair()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert not momentum_encoder(x).requires_grad
    assert not any(p.requires_grad for p in momentum_encoder.parameters())


def test_any_modules_follow_by_name_and_others_stay() -> None:
    backbone, predictor = Tiny(), nn.Linear(3, 3)
    copies = MomentumEncoder(backbone=backbone, predictor=predictor)
    assert {name.partition(".")[0] for name in copies.state_dict()} == {"backbone", "predictor"}
    before = copy.deepcopy(copies.state_dict())
    shake(backbone, predictor)
    copies.follow(predictor=predictor, value=0.25)
    torch.testing.assert_close(copies.predictor.weight, 0.25 * before["predictor.weight"] + 0.75 * predictor.weight)
    assert torch.equal(copies.backbone.linear.weight, before["backbone.linear.weight"])
    assert torch.equal(copies.eval()(torch.ones(2, 4)), copies.backbone(torch.ones(2, 4)).pooled)
