"""The workbench's options that untitled-ai's code has too, against literal transcriptions of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from workbench_helpers import COUNT, DIM, batch, build, embeddings, train

from sslcli.contracts.errors import UserError
from sslcli.losses.contrast import contrast_ip, pair_logits
from sslcli.methods.moco import MoCoOptions
from sslcli.modules.heads import mlp
from sslcli.modules.norms import BatchRenorm1d, StandardizedLinear


def literal_ip(q: torch.Tensor, k: torch.Tensor, negatives: list[torch.Tensor]) -> torch.Tensor:
    """The mean over the queries of (1 − q·k) + Σ (1 + q·k₋), where query i has the negatives `negatives[i]`."""
    each = []
    for i in range(len(q)):
        total = 1 - (q[i] * k[i]).sum()
        for other in negatives[i]:
            total = total + 1 + (q[i] * other).sum()
        each.append(total)
    return torch.stack(each).mean()


@pytest.mark.parametrize("source", ["queue", "other_view", "all"])
@pytest.mark.parametrize("unit_sphere", [True, False])
def test_inner_products_with_negatives_are_summed_over_the_pairs(source: str, unit_sphere: bool) -> None:
    torch.manual_seed(0)
    q, k, own = (torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    queue = torch.randn(7, 3, dtype=torch.float64)
    given = {"queue": {"negatives": queue}, "other_view": {}, "all": {"own": own}}[source]
    loss = contrast_ip(pair_logits(q, k, 1.0, unit_sphere=unit_sphere, **given))
    p, key, same, others = (F.normalize(x, dim=1) if unit_sphere else x for x in (q, k, own, queue))
    if source == "queue":
        negatives = [others] * 4
    else:
        negatives = [torch.cat([x[[j for j in range(4) if j != i]] for x in (key, same)]) for i in range(4)]
        negatives = [each[:3] for each in negatives] if source == "other_view" else negatives
    expected = literal_ip(p, key, negatives)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, q, retain_graph=True), torch.autograd.grad(expected, q))


def test_the_workbench_compares_inner_products_with_its_queue_without_a_temperature() -> None:
    method, data = build(loss="ip", negatives="queue", temperature=0.7), batch()
    train(method, 0, 2)
    loss = method(data).loss
    _, p, k = embeddings(method, data)
    q, key = F.normalize(p[0], dim=1), F.normalize(k[1], dim=1)
    torch.testing.assert_close(loss, literal_ip(q, key, [method.queue.keys] * COUNT))


def test_a_projector_of_0_layers_leaves_the_features_as_they_are() -> None:
    width = build().backbone.spec.feature_dim
    method = build(projector={"layers": 0, "output_dim": width})
    data = batch()
    assert isinstance(method.projector, nn.Identity)
    loss = method(data).loss
    q = F.normalize(method.backbone(data.views[0].image).pooled, dim=1)
    k = F.normalize(method.momentum_encoder.backbone(data.views[1].image).pooled, dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.keys.T], dim=1) / 0.2
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(COUNT, dtype=torch.int64)))
    train(method, 0, 2)
    with pytest.raises(UserError, match=rf"^method\.projector\.output_dim: .* set it to {width}$"):
        build(projector={"layers": 0, "output_dim": width + 1})


def test_the_predictors_norm_may_be_the_projectors() -> None:
    projector = {"norm": "group", "groups": 2, "hidden_dim": 8}
    method = build(projector=projector, predictor={"layers": 2, "norm": "same", "groups": 8, "hidden_dim": 8})
    norm = method.predictor[1]
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == 2
    same = {"norm": "batch_renorm", "norm_momentum": 0.01, "norm_eps": 1e-3}
    renorm = build(projector=same, predictor={"layers": 2, "norm": "same"}).predictor[1]
    assert isinstance(renorm, BatchRenorm1d)
    assert (renorm.momentum, renorm.eps) == (0.01, 1e-3)
    with pytest.raises(ValidationError, match=r"projector\.norm"):
        MoCoOptions.parse({"projector": {"norm": "same"}})


def test_the_last_layer_may_keep_its_weights_unstandardized() -> None:
    head = {"layers": 3, "weight_standardization": True, "standardize_last": False}
    linears = [type(m) for m in build(projector=head).projector if isinstance(m, nn.Linear)]
    assert linears == [StandardizedLinear, StandardizedLinear, nn.Linear]
    assert [type(m) for m in mlp(4, 8, 3, 1, weight_standardization=True, standardize_last=False)] == [nn.Linear]
    assert [type(m) for m in mlp(4, 8, 3, 1, weight_standardization=True)] == [StandardizedLinear]
    assert build(projector=head).projector[-1].out_features == DIM


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_a_norm_without_running_statistics_takes_no_momentum(norm: str) -> None:
    with pytest.raises(ValidationError, match=f"norm_momentum: norm '{norm}' has no running statistics"):
        MoCoOptions.parse({"projector": {"norm": norm, "norm_momentum": 0.01}})


def test_norm_eps_reaches_each_kind() -> None:
    for norm in ("batch", "layer", "group", "batch_renorm"):
        layer = build(projector={"norm": norm, "groups": 2, "norm_eps": 1e-3}).projector[1]
        assert layer.eps == 1e-3
    layer = build(projector={"norm": "batch"}).projector[1]
    assert (layer.eps, layer.momentum) == (1e-5, 0.1)
