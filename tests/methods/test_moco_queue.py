"""MoCo v1, v2 and EqCo: their queue, both directions, further views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import batch, make, train
from torch import Tensor, nn

from sslcli.contracts.method import Batch, Progress
from sslcli.losses import info_nce
from sslcli.methods._moco import QueueContrast
from sslcli.methods.eqco import EqCo
from sslcli.methods.moco_v1 import MoCoV1
from sslcli.methods.moco_v2 import MoCoV2

METHODS = (MoCoV1, MoCoV2, EqCo)
every = pytest.mark.parametrize("cls", METHODS)


def build(cls: type[QueueContrast] = MoCoV2, **options: Any) -> QueueContrast:
    return make(cls, **{"queue_size": 11, "projector": {"output_dim": 5}, **options})


def embed(backbone: nn.Module, projector: nn.Module, x: Tensor) -> Tensor:
    return projector(backbone(x).pooled)


@every
def test_moco_queue_length_need_not_be_a_multiple_of_the_batch_nor_as_long(cls: type[QueueContrast]) -> None:
    for size in (11, 8, 3, 20):
        method = build(cls, queue_size=size)
        train(method, 0, 3)
        out = method(batch(seed=3))
        method.after_step([out.carry], Progress(4, 10, 5))
        last = out.carry["keys0"][-min(size, 8) :]
        assert all((method.queues[0].keys == row).all(dim=1).any() for row in last)
        assert int(method.queues[0].pushed) == 32


@every
def test_moco_keys_enter_the_queue_after_the_step_and_normalized(cls: type[QueueContrast]) -> None:
    method = build(cls)
    before = method.queues[0].keys.clone()
    data = batch()
    out = method(data)
    assert torch.equal(method.queues[0].keys, before)  # the logits have not seen their own keys
    method.after_step([out.carry], Progress(1, 10, 5))
    encoder = build(cls).momentum_encoder
    expected = F.normalize(embed(encoder.backbone, encoder.projector, data.views[1].image), dim=1)
    torch.testing.assert_close(method.queues[0].keys[:8], expected)
    assert torch.equal(method.queues[0].keys[8:], before[8:])


def test_moco_keys_of_every_micro_batch_enter_the_queue_in_order() -> None:
    method = build(queue_size=20)
    carries = [method(batch(seed=seed)).carry for seed in (1, 2)]
    method.after_step(carries, Progress(1, 10, 5))
    assert torch.equal(method.queues[0].keys[:16], torch.cat([carry["keys0"] for carry in carries]))


def test_moco_symmetric_averages_both_directions_with_two_queues() -> None:
    method, data = build(symmetric=True), batch()
    train(method, 0, 2)  # so that queues and momentum encoder are no longer the initial ones
    twin = copy.deepcopy(method)
    out = method(data)
    x1, x2 = (view.image for view in data.views)
    q1, q2 = (embed(twin.backbone, twin.projector, x) for x in (x1, x2))
    k2, k1 = (embed(twin.momentum_encoder.backbone, twin.momentum_encoder.projector, x) for x in (x2, x1))
    first = info_nce(q1, k2, twin.queues[0].keys, 0.2)
    second = info_nce(q2, k1, twin.queues[1].keys, 0.2)
    torch.testing.assert_close(out.loss, (first + second) / 2)
    torch.testing.assert_close(out.carry["keys0"], F.normalize(k2, dim=1))
    torch.testing.assert_close(out.carry["keys1"], F.normalize(k1, dim=1))
    before = [queue.keys.clone() for queue in method.queues]
    method.after_step([out.carry], Progress(3, 10, 5))
    assert not any(torch.equal(a, queue.keys) for a, queue in zip(before, method.queues, strict=True))


@every
def test_moco_further_views_are_further_queries_of_the_same_key(cls: type[QueueContrast]) -> None:
    method, data = build(cls).eval(), batch(4, 4, 4, 2, 2)  # eval: batch norm would mix views of one size
    views = data.views
    pairs = [method(Batch([views[i], views[1]], None, data.index, {})) for i in (0, 2)]
    small = [embed(method.backbone, method.projector, view.image) for view in views[3:]]
    key = pairs[0].carry["keys0"]
    for query in small:
        arguments = (query, key, method.queues[0].keys, method.options.temperature)
        pairs.append(info_nce(*arguments, 65536 if cls is EqCo else None))
    losses = torch.stack([pair if isinstance(pair, Tensor) else pair.loss for pair in pairs])
    out = method(data)
    torch.testing.assert_close(out.loss, losses.mean())
    assert list(out.carry) == ["keys0"]
    assert torch.equal(out.carry["keys0"], key)


@every
def test_moco_query_encoder_sees_only_the_query(cls: type[QueueContrast]) -> None:
    method, data = build(cls), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 1
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 1
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)
    assert not features.requires_grad


def test_eqco_is_moco_v2_where_alpha_is_the_queue() -> None:
    assert build(EqCo, alpha=11.0)(batch()).loss.item() == pytest.approx(build()(batch()).loss.item(), rel=1e-6)
    assert build(EqCo)(batch()).loss.item() > build()(batch()).loss.item() + 1


@every
def test_moco_reports_top1_and_cosines(cls: type[QueueContrast]) -> None:
    method = build(cls)
    data = batch()
    data.views[1] = data.views[0]
    found = method(data).metrics
    assert found["contrast_top1"].item() == found["contrast_top5"].item() == 1
    assert found["pos_cos"].item() == pytest.approx(1, abs=1e-6)
    assert abs(found["neg_cos"].item()) < 0.5
