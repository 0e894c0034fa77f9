"""DINO: the views of student and teacher, the loss, the center, and what a step reports."""

from __future__ import annotations

import sys

import pytest
import torch
from dino_helpers import batch, build
from method_helpers import PER_EPOCH, STEPS, train

from sslcli.contracts.method import Progress
from sslcli.losses import dino


def test_dino_loss_is_that_of_all_views_against_the_teachers_global_ones() -> None:
    method = build(teacher_temperature=0.07)
    train(method, 0, 2)  # so that the teacher is no longer the student, and the center not 0
    data = batch(method, step=7)
    images = [view.image for view in data.views]
    big, small = (method.backbone(torch.cat(part)).pooled for part in (images[:2], images[2:]))
    student = method.head(torch.cat((big, small))).chunk(5)
    teacher = method.teacher(torch.cat(images[:2])).chunk(2)
    expected = dino(student, teacher, method.center, 0.1, 0.07)
    assert method(data).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_dino_student_sees_every_view_once_per_resolution_and_the_teacher_the_global_ones() -> None:
    method = build()
    method(batch(method))
    assert method.backbone.calls == [(16, 4), (24, 2)]
    assert method.teacher.backbone.calls == [(16, 4)]


def test_dino_head_sees_all_views_together() -> None:
    method = build(head={"norm": "batch"})
    method(batch(method))
    for head in (method.head, method.teacher.projector):
        assert head.mlp[1].num_batches_tracked.item() == 1


def test_dino_evaluates_and_exports_the_teacher() -> None:
    method = build()
    train(method, 0, 2)
    assert method.encoder() is method.teacher.backbone
    data = batch(method, step=3)
    features = method(data).features
    together = method.teacher.backbone(torch.cat([view.image for view in data.views[:2]])).pooled
    torch.testing.assert_close(features, together[:8])
    assert not features.requires_grad


def test_dino_center_follows_the_mean_of_the_teachers_logits() -> None:
    method = build(center_momentum=0.75)
    data = batch(method)
    with torch.no_grad():
        mean = method.teacher(torch.cat([view.image for view in data.views[:2]])).mean(dim=0)
    out = method(data)
    assert torch.equal(method.center, torch.zeros(7))  # not before the step is made
    method.after_step([out.carry], Progress(1, STEPS, PER_EPOCH))
    torch.testing.assert_close(method.center, 0.25 * mean)
    method.after_step([out.carry], Progress(2, STEPS, PER_EPOCH))
    torch.testing.assert_close(method.center, 0.75 * 0.25 * mean + 0.25 * mean)


def test_dino_center_takes_the_mean_of_all_micro_batches_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(center_momentum=0.5)
    module = sys.modules["sslcli.methods.dino"]
    own, others = torch.arange(7.0), torch.full((7,), 5.0)
    monkeypatch.setattr(module, "all_reduce_mean", lambda x: (x + others) / 2)
    method.after_step([{"teacher_mean": own - 1}, {"teacher_mean": own + 1}], Progress(1, STEPS, PER_EPOCH))
    torch.testing.assert_close(method.center, 0.5 * (own + others) / 2)


def test_dino_metrics_show_both_ways_to_collapse() -> None:
    method = build()
    out = method(batch(method))
    assert set(out.metrics) == {"teacher_entropy", "kl", "pos_cos", "neg_cos"}
    assert (out.metrics["teacher_entropy"] + out.metrics["kl"]).item() == pytest.approx(out.loss.item(), abs=1e-5)
    with torch.no_grad():
        method.teacher.projector.last_layer.weight.fill_(1)
    uniform = method(batch(method))
    assert uniform.metrics["teacher_entropy"].item() == pytest.approx(torch.tensor(7.0).log().item(), abs=1e-4)


def test_dino_cosines_compare_student_and_teacher_across_the_global_views() -> None:
    method = build()
    train(method, 0, 2)
    data = batch(method, step=7)
    found = method(data).metrics
    images = [view.image for view in data.views[:2]]
    a = method.head.embed(method.backbone(torch.cat(images)).pooled).chunk(2)
    b = method.teacher.projector.embed(method.teacher.backbone(torch.cat(images)).pooled).chunk(2)
    cosines = [a[0] @ b[1].T, a[1] @ b[0].T]
    same = torch.stack([c.diagonal() for c in cosines]).mean()
    other = torch.stack([c[~torch.eye(8, dtype=torch.bool)] for c in cosines]).mean()
    assert found["pos_cos"].item() == pytest.approx(same.item(), abs=1e-5)
    assert found["neg_cos"].item() == pytest.approx(other.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dino_loss_under_autocast_is_float32_and_near_the_full_one(dtype: torch.dtype) -> None:
    method = build()
    train(method, 0, 2)
    data = batch(method, step=7)
    with torch.autocast("cpu", dtype=dtype):
        out = method(data)
    out.loss.backward()
    assert out.loss.dtype == out.carry["teacher_mean"].dtype == torch.float32
    assert out.loss.item() == pytest.approx(method(data).loss.item(), abs=0.05)
