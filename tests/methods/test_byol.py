"""BYOL: its loss, its momentum encoder, the norms of its heads."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pooled_backbone import Pooled
from pydantic import ValidationError
from torch import nn

from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Progress, RunInfo, View
from sslcli.methods.byol import BYOL
from sslcli.modules.norms import BatchRenorm1d, StandardizedLinear


def build(seed: int = 0, **options: Any) -> BYOL:
    torch.manual_seed(seed)
    small = {"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 8}, **options}
    data = DataInfo("random", 3, (2, 2), (0.5,) * 3, (0.2,) * 3)
    return BYOL(Pooled(), BYOL.Options.parse(small), RunInfo(10, 5, 2, 8, 1, data))


def batch(*sizes: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [View(torch.randn(8, 3, size, size, generator=generator)) for size in sizes or (2, 2)]
    return Batch(views, None, torch.arange(8), {})


def train(method: BYOL, first: int, last: int, total: int = 10) -> None:
    """Plain gradient descent; optimizer steps `first` to `last` − 1, each with its own batch."""
    for step in range(first, last):
        out = method(batch(seed=step))
        method.zero_grad()
        out.loss.backward()
        with torch.no_grad():
            for group in method.parameter_groups():
                for parameter in group.parameters.values():
                    parameter -= 0.5 * parameter.grad
        method.after_step([out.carry], Progress(step + 1, total, 5))


def test_byol_loss_is_the_sum_of_both_directions() -> None:
    method, data = build(), batch()
    train(method, 0, 2)  # so that the momentum encoder is no longer the online one
    loss = method(data).loss
    x1, x2 = (view.image for view in data.views)
    p1, p2 = (method.predictor(method.projector(method.backbone(x).pooled)) for x in (x1, x2))
    target = method.momentum_encoder
    z1, z2 = (target.projector(target.backbone(x).pooled) for x in (x1, x2))
    both = [(2 - 2 * F.cosine_similarity(p, z)).mean().item() for p, z in ((p1, z2), (p2, z1))]
    assert loss.item() == pytest.approx(sum(both), abs=1e-5)


def test_byol_target_gets_no_gradient_and_no_optimizer() -> None:
    method = build()
    method(batch()).loss.backward()
    assert not any(p.requires_grad or p.grad is not None for p in method.momentum_encoder.parameters())
    named = {name for group in method.parameter_groups() for name in group.parameters}
    assert named == {name for name, _ in method.named_parameters() if not name.startswith("momentum_encoder.")}
    assert all(p.grad is not None for group in method.parameter_groups() for p in group.parameters.values())


def test_byol_target_follows_by_the_papers_schedule() -> None:
    method = build()
    before = copy.deepcopy(method.momentum_encoder.backbone.linear.weight).double()
    with torch.no_grad():
        method.backbone.linear.weight.add_(1)
    online = method.backbone.linear.weight.double()
    method.after_step([{}], Progress(5, 10, 5))  # half of the run: 1 − (1 − .996)·½ = .998
    expected = 0.998 * before + 0.002 * online
    assert torch.allclose(method.momentum_encoder.backbone.linear.weight.double(), expected, atol=1e-7)
    assert not torch.allclose(expected, before, atol=1e-4)


def test_byol_target_may_follow_at_a_fixed_pace() -> None:
    method = build(momentum=0.9, final_momentum=0.9)
    for step in range(1, 11):
        before = method.momentum_encoder.backbone.linear.weight.clone()
        with torch.no_grad():
            method.backbone.linear.weight.add_(1)
        method.after_step([{}], Progress(step, 10, 5))
        expected = 0.9 * before + 0.1 * method.backbone.linear.weight
        torch.testing.assert_close(method.momentum_encoder.backbone.linear.weight, expected)


def test_byol_target_ends_at_the_final_momentum() -> None:
    method = build(momentum=0.9, final_momentum=0.5)
    before = method.momentum_encoder.backbone.linear.weight.clone()
    with torch.no_grad():
        method.backbone.linear.weight.add_(1)
    method.after_step([{}], Progress(10, 10, 5))
    torch.testing.assert_close(method.momentum_encoder.backbone.linear.weight, before + 0.5)


def test_byol_target_moves_in_every_step_but_the_last() -> None:
    method = build(momentum=0.9)
    for step in range(10):
        before = [p.clone() for p in method.momentum_encoder.parameters()]
        train(method, step, step + 1)
        moved = [not torch.equal(a, b) for a, b in zip(before, method.momentum_encoder.parameters(), strict=True)]
        assert any(moved) == (step < 9), step  # m(10 of 10) is 1


def test_byol_momentum_of_one_is_refused_since_the_target_would_never_move() -> None:
    with pytest.raises(ValidationError, match="momentum"):
        build(momentum=1.0)


def test_byol_target_is_not_changed_by_a_validation_pass() -> None:
    method = build()
    train(method, 0, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    with torch.no_grad():
        method(batch(seed=7))
        method.encoder()(batch(seed=8).views[0].image)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_byol_resumed_goes_on_with_the_ema_schedule_where_it_was() -> None:
    whole = build()
    train(whole, 0, 8)
    first = build()
    train(first, 0, 4)
    second = build(seed=9)
    second.load_state_dict(first.state_dict())
    train(second, 4, 8)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_byol_stopped_early_keeps_the_ema_schedule_of_the_whole_run() -> None:
    whole, early = build(), build()
    train(whole, 0, 4)
    train(early, 0, 4, total=4)  # this session ends after 4 steps of the run's 10
    for name, value in whole.state_dict().items():
        assert torch.equal(value, early.state_dict()[name]), name


def test_byol_target_normalizes_with_its_own_batch_while_training() -> None:
    method = build().train()
    x = batch().views[0].image
    target = method.momentum_encoder
    with torch.no_grad():
        together = target(x)
        assert not torch.allclose(target(x[:4]), together[:4], atol=1e-4)
    assert target.backbone.norm.num_batches_tracked.item() == 2
    assert method.backbone.norm.num_batches_tracked.item() == 0


def test_byol_passes_one_view_at_a_time() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)
    assert not features.requires_grad


def test_byol_defaults_are_the_papers_sizes() -> None:
    options = BYOL.Options.parse({})
    assert (options.projector.layers, options.projector.hidden_dim, options.projector.output_dim) == (2, 4096, 256)
    assert (options.predictor.layers, options.predictor.hidden_dim) == (2, 4096)
    assert (options.momentum, options.final_momentum) == (0.996, 1.0)


def test_byol_heads_end_in_a_plain_linear_layer() -> None:
    method = build()
    for head in (method.projector, method.predictor):
        layers = [m for m in head.modules() if not list(m.children())]
        assert [type(m) for m in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert layers[-1].bias is not None


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("none", None),
        ("batch", nn.BatchNorm1d),
        ("layer", nn.LayerNorm),
        ("group", nn.GroupNorm),
        ("batch_renorm", BatchRenorm1d),
    ],
)
@pytest.mark.parametrize("standardized", [False, True])
def test_byol_heads_take_any_norm_and_weight_standardization(
    norm: str, kind: type[nn.Module] | None, standardized: bool
) -> None:
    head = {"hidden_dim": 8, "norm": norm, "groups": 4, "weight_standardization": standardized}
    method = build(projector={**head, "output_dim": 5}, predictor=head)
    for part in (method.projector, method.predictor, method.momentum_encoder.projector):
        layers = [type(m) for m in part.modules() if not list(m.children())]
        linear = StandardizedLinear if standardized else nn.Linear
        assert layers == [linear, *([kind] if kind else []), nn.ReLU, linear]
    train(method, 0, 2)
    assert math.isfinite(method(batch()).loss.item())


def test_byol_takes_unlike_views() -> None:
    assert BYOL.recipe(BYOL.Options(), 224) == {"preset": "byol"}
    assert BYOL.recipe(BYOL.Options(), 32) == {"preset": "cifar_asym"}


def test_byol_with_local_views_is_twice_the_mean_over_predictions_of_global_ones() -> None:
    method, data = build(), batch(4, 4, 2)
    train(method, 0, 2)  # so that the momentum encoder is no longer the online one
    loss = method(data).loss
    images = [view.image for view in data.views]
    target = method.momentum_encoder
    p = [method.predictor(method.projector(method.backbone(x).pooled)) for x in images]
    z = [target.projector(target.backbone(x).pooled) for x in images]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]  # view 2 is local: it predicts, and is not predicted
    each = [(2 - 2 * F.cosine_similarity(p[view], z[other])).mean().item() for view, other in pairs]
    assert loss.item() == pytest.approx(2 * sum(each) / 4, abs=1e-5)


def test_byol_target_never_sees_local_views() -> None:
    method = build()
    method(batch(4, 4, 2, 2))
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2
    assert method.backbone.norm.num_batches_tracked.item() == 4


@pytest.mark.parametrize("sizes", [(2,), (2, 1), (1, 2), (2, 2, 3)])
def test_byol_refuses_views_without_two_global_ones_in_front(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="views: byol needs"):
        build()(batch(*sizes))


def test_byol_heads_without_norm_have_no_batch_norm_anywhere() -> None:
    method = build(
        projector={"hidden_dim": 8, "output_dim": 5, "norm": "none"}, predictor={"hidden_dim": 8, "norm": "none"}
    )
    for head in (method.projector, method.predictor, method.momentum_encoder.projector):
        assert not any(isinstance(m, nn.BatchNorm1d) for m in head.modules())
    method(batch()).loss.backward()
    assert all(p.grad is not None for group in method.parameter_groups() for p in group.parameters.values())
