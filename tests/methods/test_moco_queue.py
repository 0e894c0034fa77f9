"""MoCo v1, v2 and EqCo: the papers' algorithm step by step, their queue, both directions, further views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import batch, make, train
from torch import Tensor, nn

from sslcli.contracts.method import Batch, Progress, View
from sslcli.losses import info_nce
from sslcli.methods._moco import QueueContrast
from sslcli.methods.eqco import EqCo
from sslcli.methods.moco_v1 import MoCoV1
from sslcli.methods.moco_v2 import MoCoV2

METHODS = (MoCoV1, MoCoV2, EqCo)
every = pytest.mark.parametrize("cls", METHODS)


def build(cls: type[QueueContrast] = MoCoV2, **options: Any) -> QueueContrast:
    return make(cls, **{"queue_size": 11, "projector": {"output_dim": 5}, **options})


def descend(module: nn.Module, loss: Tensor) -> None:
    module.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad


def embed(backbone: nn.Module, projector: nn.Module, x: Tensor) -> Tensor:
    return projector(backbone(x).pooled)


@every
def test_moco_training_is_the_papers_algorithm(cls: type[QueueContrast]) -> None:
    """Algorithm 1 in its own order: keys, logits, update of the query network, of the key network, then the queue."""
    method = build(cls, momentum=0.9).double()
    with torch.no_grad():  # drawn and normalized in float32
        method.queues[0].keys.copy_(F.normalize(method.queues[0].keys, dim=1))
    f_q = nn.ModuleList((copy.deepcopy(method.backbone), copy.deepcopy(method.projector)))
    f_k = copy.deepcopy(f_q).requires_grad_(False)
    queue = list(method.queues[0].keys)
    temperature = method.options.temperature
    for step in range(5):
        data = batch(seed=step)
        x_q, x_k = (view.image.double() for view in data.views)
        q, k = embed(*f_q, x_q), embed(*f_k, x_k)
        loss = info_nce(q, k, torch.stack(queue), temperature, 65536 if cls is EqCo else None)
        descend(f_q, loss)
        for slow, fast in zip(f_k.parameters(), f_q.parameters(), strict=True):
            slow.copy_(0.9 * slow + 0.1 * fast.detach())
        queue = [*queue, *(row / row.norm() for row in k)][-11:]

        out = method(Batch([View(x_q), View(x_k)], None, torch.arange(8), {}))
        assert out.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        descend(method, out.loss)
        method.after_step([out.carry], Progress(step + 1, 10, 5))
        found, expected = method.queues[0].keys, torch.stack(queue)
        torch.testing.assert_close(found.sort(dim=0).values, expected.sort(dim=0).values)
    moved = [*method.momentum_encoder.backbone.parameters(), *method.momentum_encoder.projector.parameters()]
    for mine, paper in zip(moved, f_k.parameters(), strict=True):
        torch.testing.assert_close(mine, paper)


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
