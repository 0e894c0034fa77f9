"""The workbench `moco`: what each option does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from workbench_helpers import (
    COUNT,
    EACH,
    STEPS_BETWEEN,
    TOTAL,
    batch,
    build,
    embeddings,
    train,
)

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Progress
from sslcli.losses import byol_regression, info_nce, vicreg
from sslcli.methods.moco import MoCo
from sslcli.modules.norms import BatchRenorm1d, StandardizedLinear


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("batch_negatives", ["all", "other_view"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("unit_sphere", [False, True])
def test_batch_negatives_are_the_momentum_keys_of_the_other_images(
    loss: str, batch_negatives: str, both: bool, unit_sphere: bool
) -> None:
    knobs = {"negatives": "batch", "batch_negatives": batch_negatives, "both_views_as_queries": both}
    method, data = build(**knobs, loss=loss, unit_sphere=unit_sphere, temperature=0.7), batch()
    train(method, 0, 2)
    value = method(data).loss
    _, p, k = embeddings(method, data)
    if unit_sphere:
        p, k = ([F.normalize(x, dim=1) for x in each] for each in (p, k))
    each = []
    for view in (0, 1) if both else (0,):
        for i in range(COUNT):
            sources = [k[1 - view]] + ([k[view]] if batch_negatives == "all" else [])
            negatives = torch.stack([s[j] for s in sources for j in range(COUNT) if j != i])
            up, down = p[view][i] @ k[1 - view][i] / 0.7, negatives @ p[view][i] / 0.7
            together = torch.cat((up.view(1), down))
            if loss == "ce":
                each.append(-F.log_softmax(together, dim=0)[0])
            else:
                target = torch.eye(len(together))[0]
                each.append(F.binary_cross_entropy_with_logits(together, target, reduction="sum"))
    torch.testing.assert_close(value, torch.stack(each).sum() / COUNT)


def test_eqco_with_few_negatives_counts_them_many_times() -> None:
    method, data = build(eqco_alpha=19 * 4.0), batch()
    loss = method(data).loss
    _, p, k = embeddings(method, data)
    torch.testing.assert_close(loss, info_nce(p[0], k[1], method.queue.keys.repeat(4, 1), 0.2))


@pytest.mark.parametrize(("reduction", "counted"), [("sum", COUNT), ("mean", COUNT - 1)])
def test_eqco_on_the_batch_counts_the_positive_too_or_only_the_negatives(reduction: str, counted: int) -> None:
    knobs = {"negatives": "batch", "batch_negatives": "other_view", "reduction": reduction}
    torch.testing.assert_close(
        build(**knobs, eqco_alpha=float(counted))(batch()).loss, build(**knobs)(batch()).loss, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("knobs", "factor"),
    [({"both_views_as_queries": True}, 2), ({"loss": "bce"}, 20), ({"loss": "bce", "both_views_as_queries": True}, 40)],
)
def test_the_sums_of_untitled_ai_are_means_on_request(knobs: dict[str, Any], factor: int) -> None:
    added, averaged = build(**knobs)(batch()).loss, build(**knobs, reduction="mean")(batch()).loss
    torch.testing.assert_close(added, factor * averaged)


def test_vic_weights_and_epsilon_are_the_options() -> None:
    method, data = build(preset="vicreg", invariance=2.0, variance=3.0, covariance=5.0, variance_epsilon=0.5), batch()
    loss = method(data).loss
    z, _, _ = embeddings(method, data)
    torch.testing.assert_close(loss, vicreg(z[0], z[1], 2.0, 3.0, 5.0, 0.5))


def test_vic_may_work_on_the_unit_sphere() -> None:
    method, data = build(preset="vicreg", unit_sphere=True), batch()
    loss = method(data).loss
    z, _, _ = embeddings(method, data)
    torch.testing.assert_close(loss, vicreg(F.normalize(z[0], dim=1), F.normalize(z[1], dim=1)))


@pytest.mark.parametrize("loss", ["ip", "bce"])
def test_only_positive_pairs(loss: str) -> None:
    method, data = build(loss=loss, negatives="none", unit_sphere=False), batch()
    value = method(data).loss
    _, p, k = embeddings(method, data)
    inner = (p[0] * k[1]).sum(dim=1)
    torch.testing.assert_close(value, (1 - inner if loss == "ip" else F.softplus(-inner / 0.2)).mean())


def gradient_through_the_key(method: MoCo) -> bool:
    """Whether anything of view 2, which is only a key, gets a gradient."""
    data = batch()
    data.views[1].image.requires_grad_()
    method(data).loss.backward()
    gradient = data.views[1].image.grad
    return gradient is not None and bool(gradient.abs().sum() > 0)


@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_gradient_flows_through_the_keys_only_where_it_is_not_stopped(negatives: str) -> None:
    knobs = {"negatives": negatives, "batch_negatives": "other_view"}
    assert not gradient_through_the_key(build(**knobs))
    assert not gradient_through_the_key(build(**knobs, stop_gradient=False))  # a momentum encoder has none anyway
    assert not gradient_through_the_key(build(**knobs, momentum_encoder=False))
    assert gradient_through_the_key(build(**knobs, momentum_encoder=False, stop_gradient=False))


def test_simsiam_without_stop_gradient_is_an_explicit_option() -> None:
    simsiam = STEPS_BETWEEN["simsiam's"] | {"both_views_as_queries": False}
    assert not gradient_through_the_key(build(**simsiam))
    assert gradient_through_the_key(build(**simsiam, stop_gradient=False))


def test_online_keys_come_before_the_predictor() -> None:
    method, data = build(**STEPS_BETWEEN["simsiam's"]), batch()
    loss = method(data).loss
    z, p, _ = embeddings(method, data)
    torch.testing.assert_close(loss, (byol_regression(p[0], z[1]) + byol_regression(p[1], z[0])) / 2)


@EACH
def test_only_the_parts_that_are_used_are_there(knobs: dict[str, Any]) -> None:
    method = build(**knobs)
    names = {name.split(".")[0] for name in method.state_dict()}
    assert ("momentum_encoder" in names) == method.options.momentum_encoder
    assert ("queue" in names) == (method.options.negatives == "queue")
    assert ("predictor" in names) == bool(method.options.predictor.layers)


@pytest.mark.parametrize(("together", "batches"), [(False, 2), (True, 1)])
def test_batch_norms_see_views_together_on_request(together: bool, batches: int) -> None:
    method = build(views_together=together, both_views_as_queries=True)
    method(batch())
    assert method.backbone.norm.num_batches_tracked.item() == batches
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2


def test_the_network_sees_only_the_views_that_it_needs() -> None:
    method = build()
    method(batch())
    assert method.backbone.norm.num_batches_tracked.item() == 1
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("unit_sphere", [True, False])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_queue_takes_view_2_of_each_micro_batch_and_with_means_of_both_then_view_1(
    both: bool, unit_sphere: bool, reduction: str
) -> None:
    method = build(both_views_as_queries=both, unit_sphere=unit_sphere, queue_size=37, reduction=reduction)
    train(method, 0, 1)
    before, start = method.queue.keys.clone(), int(method.queue.place)
    data = [batch(5, count=4), batch(6, count=3)]
    carries = [method(each).carry for each in data]
    assert torch.equal(method.queue.keys, before)  # until the step is made
    expected = []
    for each in data:
        keys = embeddings(method, each)[2]
        expected += [keys[1], keys[0]] if both and reduction == "mean" else [keys[1]]
    rows = torch.cat([F.normalize(k, dim=1) if unit_sphere else k for k in expected])
    method.after_step(carries, Progress(2, TOTAL, 3))
    indices = (start + torch.arange(len(rows))) % 37
    torch.testing.assert_close(method.queue.keys[indices], rows)
    others = [i for i in range(37) if i not in indices.tolist()]
    assert torch.equal(method.queue.keys[others], before[others])


def test_both_directions_are_compared_with_one_queue() -> None:
    method, data = build(both_views_as_queries=True), batch()
    train(method, 0, 2)
    loss = method(data).loss
    _, p, k = embeddings(method, data)
    each = [info_nce(p[view], k[1 - view], method.queue.keys, 0.2) for view in (0, 1)]
    torch.testing.assert_close(loss, sum(each))


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
def test_heads_take_any_norm_weight_standardization_and_last_norm(
    norm: str, kind: type[nn.Module] | None, standardized: bool
) -> None:
    head = {"layers": 2, "norm": norm, "groups": 4, "weight_standardization": standardized, "last_norm": "no_affine"}
    method = build(projector=head, predictor=head)
    linear = StandardizedLinear if standardized else nn.Linear
    for part in (method.projector, method.predictor, method.momentum_encoder.projector):
        layers = [type(m) for m in part.modules() if not list(m.children())]
        assert layers == [linear, *([kind] if kind else []), nn.ReLU, linear, nn.BatchNorm1d]
    assert math.isfinite(train(method, 0, 2)[1])


def test_groups_that_do_not_divide_a_heads_width_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="cannot be divided into 3 groups"):
        build(predictor={"layers": 2, "norm": "group", "groups": 3})


def test_every_step_and_view_is_shuffled_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    def record(network: nn.Module, images: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        numbers.append(int(number))
        return network(images)

    monkeypatch.setattr("sslcli.modules.shuffle.is_distributed", lambda: True)
    monkeypatch.setattr("sslcli.modules.shuffle.shuffled", record)
    method = build(both_views_as_queries=True)
    train(method, 0, 3)
    assert len(set(numbers)) == len(numbers) == 6
    method.eval()(batch())
    build(both_views_as_queries=True, shuffle_bn=False)(batch())
    assert len(numbers) == 6  # neither in evaluation nor where it is switched off
