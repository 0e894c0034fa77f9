"""NNCLR: whose neighbor is compared with whose prediction, what the queue holds and when, what has a gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import batch, make, train
from torch import Tensor

from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.method import Progress
from sslcli.methods.moco_v3 import MoCoV3
from sslcli.methods.nnclr import NNCLR


def build(**options: Any) -> NNCLR:
    heads = {"projector": {"hidden_dim": 7, "output_dim": 5}, "predictor": {"hidden_dim": 6}}
    return make(NNCLR, **{"queue_size": 24, **heads, **options})


def embeddings(method: NNCLR, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    z = [method.projector(method.backbone(x).pooled) for x in images]
    return z, [method.predictor(each) for each in z]


def literal(method: NNCLR, images: list[Tensor], tau: float, pairs: list[tuple[int, int]]) -> float:
    """The paper's algorithm, image by image: the neighbor of view i's embedding finds view j's prediction."""
    with torch.no_grad():
        z, p = embeddings(copy.deepcopy(method).double(), [x.double() for x in images])
    keys, total = method.queue.keys.double(), 0.0
    for i, j in pairs:
        for n in range(len(images[0])):
            neighbor = max(keys, key=lambda key: float(F.cosine_similarity(key, z[i][n], dim=0)))
            cosines = [float(F.cosine_similarity(neighbor, other, dim=0)) / tau for other in p[j]]
            total += math.log(sum(math.exp(cosine) for cosine in cosines)) - cosines[n]
    return total / len(pairs) / len(images[0])


@pytest.mark.parametrize("views", [2, 3])
def test_the_loss_is_the_papers_algorithm(views: int) -> None:
    method = build(temperature=0.3)
    train(method, 0, 2)  # half of the queue is of earlier steps
    data = batch(*[4] * views)
    pairs = [(i, j) for i in range(views) for j in range(views) if i != j]
    expected = literal(method, [view.image for view in data.views], 0.3, pairs)
    assert method(data).loss.item() == pytest.approx(expected, rel=1e-5)


def test_small_views_predict_and_have_no_neighbors() -> None:
    method, data = build(temperature=0.3).eval(), batch(8, 8, 4)
    images = [view.image for view in data.views]
    expected = literal(method, images, 0.3, [(0, 1), (0, 2), (1, 0), (1, 2)])
    assert method(data).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_views_embeddings_enter_the_queue_after_the_step_with_their_labels() -> None:
    method, data = build(), batch()
    before = method.queue.keys.clone()
    z, _ = embeddings(copy.deepcopy(method), [view.image for view in data.views])
    out = method(data)
    assert torch.equal(method.queue.keys, before)
    method.after_step([out.carry, method(batch(seed=2)).carry], Progress(1, 10, 5))
    torch.testing.assert_close(method.queue.keys[:8], F.normalize(z[0].detach(), dim=1))
    assert method.queue.labels.tolist() == [*data.labels.tolist() * 2, *[-1] * 8]
    assert torch.equal(method.queue.keys[16:], before[16:])


def test_neighbors_and_the_embeddings_they_are_looked_up_by_have_no_gradient() -> None:
    """Only predictions do: with a predictor of zeros the projector gets none."""
    method = build()
    torch.nn.init.zeros_(method.predictor[-1].weight)
    out = method(batch())
    assert not any(value.requires_grad for value in [*out.carry.values(), *out.metrics.values()])
    out.loss.backward()
    assert all(not p.grad.any() for p in method.projector.parameters())
    assert method.predictor[-1].bias.grad.any()
    assert not any(name.startswith("queue") for name, _ in method.named_parameters())


def test_metrics_are_of_the_first_views_neighbors() -> None:
    method, data = build(), batch()
    z, _ = embeddings(copy.deepcopy(method), [view.image for view in data.views])
    u = F.normalize(z[0].detach(), dim=1)
    method.queue.push(torch.cat((u, -u)), torch.cat((data.labels, data.labels)))
    method.queue.labels[0] = 9  # one of eight has another label than its image
    metrics = method(data).metrics
    assert metrics["neighbor_cos"].item() == pytest.approx(1)
    assert metrics["neighbor_same_label"].item() == pytest.approx(7 / 8)
    assert {"contrast_top1", "contrast_top5", "pos_cos", "neg_cos"} < metrics.keys()


def test_images_without_labels_have_neighbors_without_labels() -> None:
    method, data = build(), batch()
    data.labels = None
    out = method(data)
    method.after_step([out.carry], Progress(1, 10, 5))
    assert "neighbor_same_label" not in out.metrics
    assert (method.queue.labels == -1).all()
    assert method(batch()).metrics["neighbor_same_label"] == 0  # a queue of unknown labels


def test_neighbors_are_soon_earlier_images_and_not_the_random_vectors_of_the_start() -> None:
    method = build(queue_size=64)
    train(method, 0, 3, lr=0.1)
    z, _ = embeddings(method, [batch(seed=9).views[0].image])
    nearest = method.queue.nearest(F.normalize(z[0], dim=1))
    assert (nearest < 24).float().mean() > 0.7


def test_defaults_for_transformers_are_those_of_moco_v3() -> None:
    vit = BackboneSpec(384, patch_size=16)
    ours, theirs = (cls.defaults(cls.Options(), vit) for cls in (NNCLR, MoCoV3))
    assert ours == {key: theirs[key] for key in ("optimizer", "schedule")}
