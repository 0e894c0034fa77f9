"""MoCo v1, v2 and EqCo: the papers' algorithm step by step, their queue and momentum encoder, further views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pooled_backbone import Pooled
from pydantic import ValidationError
from torch import Tensor, nn

from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Progress, RunInfo, View
from sslcli.losses import eqco, info_nce
from sslcli.methods._moco import QueueContrast
from sslcli.methods.eqco import EqCo
from sslcli.methods.moco_v1 import MoCoV1
from sslcli.methods.moco_v2 import MoCoV2

METHODS = (MoCoV1, MoCoV2, EqCo)
every = pytest.mark.parametrize("cls", METHODS)


def build(cls: type[QueueContrast] = MoCoV2, seed: int = 0, total: int = 10, **options: Any) -> QueueContrast:
    torch.manual_seed(seed)
    small = {"queue_size": 11, "projector": {"output_dim": 5}, **options}
    data = DataInfo("random", 3, (4, 4), (0.5,) * 3, (0.2,) * 3)
    return cls(Pooled(), cls.Options.parse(small), RunInfo(total, 5, 2, 8, 1, data))


def batch(seed: int = 1, sizes: tuple[int, ...] = (4, 4)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch([View(torch.randn(8, 3, s, s, generator=generator)) for s in sizes], None, torch.arange(8), {})


def descend(module: nn.Module, loss: Tensor) -> None:
    module.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad


def train(method: QueueContrast, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        out = method(batch(seed=step))
        descend(method, out.loss)
        method.after_step([out.carry], Progress(step + 1, 10, 5))
        losses.append(out.loss.item())
    return losses


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
        data = batch(step)
        x_q, x_k = (view.image.double() for view in data.views)
        q, k = embed(*f_q, x_q), embed(*f_k, x_k)
        if cls is EqCo:
            loss = eqco(q, k, torch.stack(queue), temperature, 65536)
        else:
            loss = info_nce(q, k, torch.stack(queue), temperature)
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
        out = method(batch(3))
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
    carries = [method(batch(seed)).carry for seed in (1, 2)]
    method.after_step(carries, Progress(1, 10, 5))
    assert torch.equal(method.queues[0].keys[:16], torch.cat([carry["keys0"] for carry in carries]))


@every
def test_moco_keys_carry_no_gradient(cls: type[QueueContrast]) -> None:
    method = build(cls)
    out = method(batch())
    out.loss.backward()
    assert not out.carry["keys0"].requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in method.momentum_encoder.parameters())
    named = {name for group in method.parameter_groups() for name in group.parameters}
    assert named == {name for name, _ in method.named_parameters() if not name.startswith("momentum_encoder.")}


@every
def test_moco_ema_and_queue_are_not_changed_by_a_validation_pass(cls: type[QueueContrast]) -> None:
    method = build(cls)
    train(method, 0, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    with torch.no_grad():
        method(batch(seed=7))
        method.encoder()(batch(seed=8).views[0].image)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


@every
def test_moco_resumed_keeps_queue_and_ema_schedule(cls: type[QueueContrast]) -> None:
    options = {"momentum": 0.9, "final_momentum": 0.99, "symmetric": True}
    whole, first, second = build(cls, **options), build(cls, **options), build(cls, seed=9, **options)
    losses = train(whole, 0, 8)
    again = train(first, 0, 4)
    second.load_state_dict(first.state_dict(), strict=True)
    assert losses == again + train(second, 4, 8)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@every
def test_moco_keys_move_in_every_step(cls: type[QueueContrast]) -> None:
    method = build(cls)
    for step in range(10):
        before = [p.clone() for p in method.momentum_encoder.parameters()]
        train(method, step, step + 1)
        after = method.momentum_encoder.parameters()
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), step
    with pytest.raises(ValidationError, match="momentum"):
        build(cls, momentum=1.0)


@pytest.mark.parametrize(("options", "momentum"), [({}, 0.999), ({"momentum": 0.99, "final_momentum": 0.999}, 0.9945)])
def test_moco_momentum_is_fixed_or_follows_a_cosine(options: dict[str, float], momentum: float) -> None:
    method = build(**options)
    before = method.momentum_encoder.backbone.linear.weight.clone()
    with torch.no_grad():
        method.backbone.linear.weight.add_(1)
    method.after_step([], Progress(5, 10, 5))  # half of the run
    moved = method.momentum_encoder.backbone.linear.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - momentum), rtol=0, atol=1e-6)


def test_moco_stopped_early_keeps_the_ema_schedule_of_the_whole_run() -> None:
    whole, early = build(final_momentum=1.0), build(final_momentum=1.0)
    for method, total in ((whole, 10), (early, 2)):
        with torch.no_grad():
            method.backbone.linear.weight.add_(1)
        method.after_step([], Progress(2, total, 5))
    assert torch.equal(*(m.momentum_encoder.backbone.linear.weight for m in (whole, early)))


def test_moco_symmetric_averages_both_directions_with_two_queues() -> None:
    method, data = build(symmetric=True), batch()
    for step in range(2):  # so that queues and momentum encoder have something of their own
        train(method, step, step + 1)
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
    method, data = build(cls).eval(), batch(sizes=(4, 4, 4, 2, 2))  # eval: batch norm would mix views of one size
    views = data.views
    pairs = [method(Batch([views[i], views[1]], None, data.index, {})) for i in (0, 2)]
    small = [embed(method.backbone, method.projector, view.image) for view in views[3:]]
    key = pairs[0].carry["keys0"]
    for query in small:
        arguments = (query, key, method.queues[0].keys, method.options.temperature)
        pairs.append(eqco(*arguments, 65536) if cls is EqCo else info_nce(*arguments))
    losses = torch.stack([pair if isinstance(pair, Tensor) else pair.loss for pair in pairs])
    out = method(data)
    torch.testing.assert_close(out.loss, losses.mean())
    assert list(out.carry) == ["keys0"]
    assert torch.equal(out.carry["keys0"], key)


@every
def test_moco_refuses_views_it_cannot_use(cls: type[QueueContrast]) -> None:
    for sizes in ((4,), (4, 2), (2, 4)):
        with pytest.raises(UserError, match=f"views: {cls.label} needs 2 or more views"):
            build(cls)(batch(sizes=sizes))


@every
def test_moco_query_encoder_sees_the_query_alone(cls: type[QueueContrast]) -> None:
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
    data.views[1] = data.views[0]  # the copy says of the same image what the network says
    found = method(data).metrics
    assert found["contrast_top1"].item() == found["contrast_top5"].item() == 1
    assert found["pos_cos"].item() == pytest.approx(1, abs=1e-6)
    assert abs(found["neg_cos"].item()) < 0.5


def test_moco_v1_and_v2_are_the_papers_settings() -> None:
    v1, v2, few = (cls.Options.parse({}) for cls in METHODS)
    assert (v1.temperature, v1.queue_size, v1.momentum, v1.projector.output_dim) == (0.07, 65536, 0.999, 128)
    assert (v2.temperature, v2.queue_size, v2.momentum, v2.projector.output_dim) == (0.2, 65536, 0.999, 128)
    assert (few.temperature, few.queue_size, few.alpha) == (0.2, 256, 65536)
    assert not any(o.symmetric or o.final_momentum is not None for o in (v1, v2, few))
    for cls in METHODS:
        optimizer = cls.defaults["optimizer"]
        assert (optimizer["lr"], optimizer["weight_decay"], optimizer["exclude"]) == (0.03, 1e-4, [])
    assert MoCoV1.defaults["schedule"] == {"name": "step", "milestones": [0.6, 0.8], "factor": 0.1}
    assert MoCoV2.defaults["schedule"]["name"] == EqCo.defaults["schedule"]["name"] == "cosine"
    assert [cls.recipe(cls.Options(), 224)["preset"] for cls in METHODS] == ["moco_v1", "moco_v2", "moco_v2"]


def test_moco_v1_has_a_linear_head_and_v2_an_mlp_without_norms() -> None:
    assert isinstance(build(MoCoV1).projector, nn.Linear)
    for method, hidden in ((build(), 6), (build(EqCo, projector={"hidden_dim": 9, "output_dim": 5}), 9)):
        assert [type(layer) for layer in method.projector] == [nn.Linear, nn.ReLU, nn.Linear]
        assert (method.projector[0].out_features, method.projector[2].out_features) == (hidden, 5)
        assert method.projector[0].bias is not None
        assert method.projector[2].bias is not None
