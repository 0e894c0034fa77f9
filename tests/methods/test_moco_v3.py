"""MoCo v3: its loss over two views and more, its heads after a ViT, the frozen patch projection."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from method_helpers import Pooled, batch, layers, make, train
from torch import Tensor, nn

from sslcli.contracts.backbone import Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch
from sslcli.methods.moco_v3 import MoCoV3


class Patches(Pooled):
    """The same with a patch projection, as ViTs have one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_projection = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return super().forward(self.patch_projection(x))


def build(backbone: type[Pooled] = Pooled, **options: Any) -> MoCoV3:
    small = {"projector": {"hidden_dim": 8, "output_dim": 5}, "predictor": {"hidden_dim": 8}, **options}
    return make(MoCoV3, backbone=backbone, **small)


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
    method, data = build(), batch(4, 4, 4, 2)
    train(method, 0, 2)
    queries, keys = embeddings(copy.deepcopy(method), data)
    pairs = [ctr(queries[i], keys[j], 1.0) for i in range(4) for j in range(3) if i != j]
    assert len(pairs) == 9
    assert method(data).loss.item() == pytest.approx(2 * sum(pairs) / 9, rel=1e-5)


@pytest.mark.parametrize(("sizes", "passes"), [((4, 4), 2), ((4, 4, 2, 2), 3)])
def test_moco_v3_passes_one_global_view_at_a_time_and_local_views_together(sizes: tuple[int, ...], passes: int) -> None:
    method, data = build(), batch(*sizes)
    features = method(data).features
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2
    assert method.backbone.norm.num_batches_tracked.item() == method.predictor[1].num_batches_tracked.item() == passes
    assert torch.equal(features, method.backbone(data.views[0].image).pooled)


BLOCK = "linear bn relu"


def test_moco_v3_heads_and_temperature_are_the_papers_after_a_vit() -> None:
    method = build(Patches)
    assert layers(method.projector) == f"{BLOCK} {BLOCK} linear bn-γβ"
    assert layers(method.predictor) == f"{BLOCK} linear bn-γβ"
    assert (method.temperature, build().temperature) == (0.2, 1.0)


def test_moco_v3_heads_and_temperature_can_be_set() -> None:
    heads = {"projector": {"layers": 1, "output_dim": 5}, "predictor": {"hidden_dim": 8, "last_norm": False}}
    method = build(Patches, **heads, temperature=0.7)
    assert (layers(method.projector), layers(method.predictor)) == ("linear bn-γβ", f"{BLOCK} linear")
    assert method.temperature == 0.7


@pytest.mark.parametrize("frozen", [None, True, False])
def test_moco_v3_freezes_a_vits_patch_projection_unless_the_options_say_otherwise(frozen: bool | None) -> None:
    method = build(Patches, freeze_patch_projection=frozen)
    start = copy.deepcopy(method.backbone.patch_projection)
    train(method, 0, 3)
    same = torch.equal(method.backbone.patch_projection.weight, start.weight)
    named = {name for group in method.parameter_groups() for name in group.parameters}
    assert same == (frozen is not False)
    assert any("patch_projection" in name for name in named) != same
    if same:
        assert torch.equal(method.momentum_encoder.backbone.patch_projection.weight, start.weight)


def test_moco_v3_reports_that_there_is_no_patch_projection_to_freeze() -> None:
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
