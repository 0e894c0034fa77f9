"""MoCo v3: its loss, its heads behind ResNets and ViTs, its momentum encoder, further views."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pooled_backbone import Pooled
from pydantic import ValidationError
from torch import Tensor, nn

from sslcli.contracts.backbone import Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Progress, RunInfo, View
from sslcli.methods.moco_v3 import MoCoV3


class Patches(Pooled):
    """The like with a patch projection, as ViTs have one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_projection = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return super().forward(self.patch_projection(x))


def build(seed: int = 0, backbone: type[Pooled] = Pooled, **options: Any) -> MoCoV3:
    torch.manual_seed(seed)
    small = {"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 8}, **options}
    data = DataInfo("random", 3, (4, 4), (0.5,) * 3, (0.2,) * 3)
    return MoCoV3(backbone(), MoCoV3.Options.parse(small), RunInfo(10, 5, 2, 8, 1, data))


def batch(seed: int = 1, sizes: tuple[int, ...] = (4, 4)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch([View(torch.randn(8, 3, s, s, generator=generator)) for s in sizes], None, torch.arange(8), {})


def train(method: MoCoV3, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        out = method(batch(seed=step))
        method.zero_grad()
        out.loss.backward()
        with torch.no_grad():
            for group in method.parameter_groups():
                for parameter in group.parameters.values():
                    parameter -= 0.3 * parameter.grad
        method.after_step([out.carry], Progress(step + 1, 10, 5))
        losses.append(out.loss.item())
    return losses


def embeddings(method: MoCoV3, data: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys of every view, one view at a time."""
    images = [view.image for view in data.views]
    queries = [method.predictor(method.projector(method.backbone(x).pooled)) for x in images]
    slow = method.momentum_encoder
    return [q.detach() for q in queries], [slow.projector(slow.backbone(x).pooled).detach() for x in images]


def ctr(q: Tensor, k: Tensor, tau: float) -> float:
    """The paper's `ctr` of algorithm 1."""
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(q)):
        scores = [math.exp(float(q[i] @ k[j]) / tau) for j in range(len(k))]
        total += -math.log(scores[i] / sum(scores))
    return 2 * tau * total / len(q)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_moco_v3_loss_is_the_papers_sum_of_both_directions(tau: float) -> None:
    method, data = build(temperature=tau), batch()
    train(method, 0, 2)  # so that the momentum encoder is no longer the online one
    (q1, q2), (k1, k2) = embeddings(copy.deepcopy(method), data)
    assert method(data).loss.item() == pytest.approx(ctr(q1, k2, tau) + ctr(q2, k1, tau), rel=1e-5)


def test_moco_v3_further_views_are_compared_with_every_global_key() -> None:
    method, data = build(), batch(sizes=(4, 4, 4, 2))
    train(method, 0, 2)
    queries, keys = embeddings(copy.deepcopy(method), data)
    pairs = [ctr(queries[i], keys[j], 1.0) for i in range(4) for j in range(3) if i != j]
    assert len(pairs) == 9
    assert method(data).loss.item() == pytest.approx(2 * sum(pairs) / 9, rel=1e-5)


def test_moco_v3_refuses_views_it_cannot_use() -> None:
    for sizes in ((4,), (4, 2), (2, 4)):
        with pytest.raises(UserError, match="views: moco_v3 needs 2 or more views"):
            build()(batch(sizes=sizes))


def test_moco_v3_momentum_of_one_is_refused_since_the_keys_would_never_move() -> None:
    with pytest.raises(ValidationError, match="momentum"):
        build(momentum=1.0)


def test_moco_v3_keys_move_in_every_step_but_the_last() -> None:
    method = build()
    for step in range(10):
        before = [p.clone() for p in method.momentum_encoder.parameters()]
        train(method, step, step + 1)
        moved = [not torch.equal(a, b) for a, b in zip(before, method.momentum_encoder.parameters(), strict=True)]
        assert any(moved) == (step < 9), step  # m(10 of 10) is 1


@pytest.mark.parametrize(("options", "momentum"), [({}, 0.995), ({"final_momentum": 0.99}, 0.99)])
def test_moco_v3_momentum_follows_a_cosine(options: dict[str, float], momentum: float) -> None:
    method = build(**options)
    before = method.momentum_encoder.backbone.linear.weight.clone()
    with torch.no_grad():
        method.backbone.linear.weight.add_(1)
    method.after_step([{}], Progress(5, 10, 5))  # half of the run
    moved = method.momentum_encoder.backbone.linear.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - momentum), rtol=0, atol=1e-6)


def test_moco_v3_ema_is_not_changed_by_a_validation_pass() -> None:
    method = build()
    train(method, 0, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    with torch.no_grad():
        method(batch(seed=7))
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_moco_v3_resumed_goes_on_with_the_ema_schedule_where_it_was() -> None:
    whole, first, second = build(), build(), build(seed=9)
    losses = train(whole, 0, 8)
    again = train(first, 0, 4)
    second.load_state_dict(first.state_dict(), strict=True)
    assert losses == again + train(second, 4, 8)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_moco_v3_passes_one_view_at_a_time() -> None:
    method, data = build(), batch()
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 2
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)
    assert not features.requires_grad


def kinds(head: nn.Sequential) -> list[type[nn.Module]]:
    return [type(layer) for layer in head]


BLOCK = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
END = [nn.Linear, nn.BatchNorm1d]


def test_moco_v3_heads_are_the_papers_behind_a_resnet() -> None:
    method = build()
    assert kinds(method.projector) == [*BLOCK, *END]
    assert kinds(method.predictor) == [*BLOCK, nn.Linear]
    assert method.projector[-1].weight is None  # without scale and shift
    linears = [layer for head in (method.projector, method.predictor) for layer in head if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linears)
    assert method.temperature == 1.0


def test_moco_v3_heads_are_the_papers_behind_a_vit() -> None:
    method = build(backbone=Patches)
    assert kinds(method.projector) == [*BLOCK, *BLOCK, *END]
    assert kinds(method.predictor) == [*BLOCK, *END]
    assert method.projector[-1].weight is None
    assert method.predictor[-1].weight is None
    assert method.temperature == 0.2


def test_moco_v3_heads_can_be_said() -> None:
    method = build(
        backbone=Patches,
        projector={"layers": 1, "output_dim": 5},
        predictor={"hidden_dim": 8, "last_norm": False},
        temperature=0.7,
    )
    assert kinds(method.projector) == END
    assert kinds(method.predictor) == [*BLOCK, nn.Linear]
    assert method.temperature == 0.7
    assert kinds(build(predictor={"hidden_dim": 8, "last_norm": True}).predictor) == [*BLOCK, *END]


def test_moco_v3_keeps_a_vit_s_patch_projection_as_it_was() -> None:
    method = build(backbone=Patches)
    start = copy.deepcopy(method.backbone.patch_projection)
    train(method, 0, 3)
    for part in (method.backbone, method.momentum_encoder.backbone):
        assert torch.equal(part.patch_projection.weight, start.weight)
        assert torch.equal(part.patch_projection.bias, start.bias)
    named = {name for group in method.parameter_groups() for name in group.parameters}
    assert not any("patch_projection" in name for name in named)


def test_moco_v3_trains_the_patch_projection_where_it_is_told_to() -> None:
    method = build(backbone=Patches, freeze_patch_projection=False)
    start = copy.deepcopy(method.backbone.patch_projection)
    train(method, 0, 1)
    assert not torch.equal(method.backbone.patch_projection.weight, start.weight)


def test_moco_v3_says_that_there_is_no_patch_projection_to_freeze() -> None:
    with pytest.raises(UserError, match=r"method\.freeze_patch_projection: .*no patch projection"):
        build(freeze_patch_projection=True)


def test_moco_v3_reports_how_many_keys_are_found() -> None:
    method, data = build(), batch()
    method.predictor = nn.Identity()
    data.views[1] = data.views[0]
    found = method(data).metrics
    assert found["contrast_top1"].item() == found["contrast_top5"].item() == 1
    assert found["pos_cos"].item() == pytest.approx(1, abs=1e-6)
    assert found["neg_cos"].item() < 0.5


def test_moco_v3_defaults_are_the_papers() -> None:
    options = MoCoV3.Options.parse({})
    assert (options.projector.hidden_dim, options.projector.output_dim) == (4096, 256)
    assert options.predictor.hidden_dim == 4096
    assert (options.momentum, options.final_momentum) == (0.99, 1.0)
    assert MoCoV3.recipe(options, 224) == {"preset": "byol", "crop_scale": [0.2, 1.0], "interpolation": "bilinear"}
    assert MoCoV3.recipe(options, 32) == {"preset": "cifar_asym"}
