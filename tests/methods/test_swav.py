"""SwAV: its loss over views of two sizes, frozen prototypes, and whole runs with multi-crop; see also its queue's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import COUNT, PER_EPOCH, STEPS
from swav_helpers import batch, build, descend, embed

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Progress
from sslcli.losses import sinkhorn, swapped_prediction
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import find, load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.training.train import train as train_run

OPTIMIZERS = [plugin.name for plugin in find("optimizers") if plugin.package == "sslcli"]


def test_swav_loss_is_put_together_as_in_the_paper() -> None:
    method, data = build(temperature=0.2, epsilon=0.1, sinkhorn_iterations=2), batch()
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    expected = swapped_prediction(scores, [sinkhorn(s, 0.1, 2) for s in scores[:2]], 0.2)
    torch.testing.assert_close(method(data).loss, expected)


def test_swav_assigned_views_are_the_first_ones() -> None:
    method, data = build(assigned_views=1), batch()
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    torch.testing.assert_close(method(data).loss, swapped_prediction(scores, [sinkhorn(scores[0])]))


def test_swav_embeddings_are_not_detached() -> None:
    method, data = build(), batch()
    method(data).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in method.named_parameters()}
    method.zero_grad()
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    swapped_prediction(scores, [sinkhorn(s) for s in scores[:2]]).backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=lambda m, n=name: f"{n}: {m}")
    assert found["backbone.convolution.weight"].abs().max() > 1e-3


def test_swav_training_makes_views_agree_as_the_loss_has_its_minus() -> None:
    method = build(frozen_epochs=0)
    before = method(batch(seed=99))
    for _ in descend(method, 0, 40, lr=0.5):
        pass
    after = method(batch(seed=99))
    assert 0 < after.loss < before.loss - 0.2
    assert after.metrics["pos_cos"] > before.metrics["pos_cos"]


def test_swav_backbone_sees_one_resolution_at_a_time_and_the_head_all_views() -> None:
    method, data = build(), batch(sides=(8, 8, 5, 5, 4))
    shapes: list[tuple[int, ...]] = []
    method.projector.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    features = method(data).features
    assert method.backbone.norm.num_batches_tracked.item() == 3
    assert shapes == [(5 * COUNT, 7)]
    both = torch.cat([view.image for view in data.views[:2]])
    torch.testing.assert_close(features, method.backbone(both).pooled[:COUNT])
    assert not features.requires_grad


def test_swav_does_without_local_views() -> None:
    method, data = build(), batch(sides=(8, 8))
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    torch.testing.assert_close(method(data).loss, swapped_prediction(scores, [sinkhorn(s) for s in scores]))


def test_swav_needs_as_many_global_views_as_are_assigned() -> None:
    with pytest.raises(UserError, match="swav needs 3 or more views of the first one's size, but there are 2"):
        build(assigned_views=3)(batch())


def test_swav_metrics_are_those_of_the_first_two_views() -> None:
    method, data = build(), batch()
    metrics = method(data).metrics
    z = embed(method, data)
    cosines = z[0] @ z[1].T
    assert metrics["pos_cos"].item() == pytest.approx(cosines.diagonal().mean().item(), abs=1e-5)
    off = cosines.masked_select(~torch.eye(COUNT, dtype=torch.bool)).mean().item()
    assert metrics["neg_cos"].item() == pytest.approx(off, abs=1e-5)
    assert 1 <= metrics["prototype_use"] <= 10


def test_swav_prototype_use_is_one_when_all_images_have_one_prototype() -> None:
    method, data = build(temperature=0.01), batch()
    with torch.no_grad():
        method.prototypes.weight.copy_(-embed(method, data)[0].mean(dim=0).expand(10, 6))
        method.prototypes.weight[4].neg_()
        method.prototypes.normalize()
    assert method(data).metrics["prototype_use"] < 2


def test_swav_prototypes_are_normalized_before_every_forward() -> None:
    method = build(frozen_steps=2)
    for _ in descend(method, 0, 5):
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_swav_frozen_prototypes_have_no_gradient_no_decay_and_no_momentum(name: str) -> None:
    plugin = load("optimizers", name)
    method, options = build(frozen_steps=3), plugin.Options.parse({"lr": 0.1, "weight_decay": 0.5, "exclude": []})
    start = method.prototypes.weight.detach().clone()
    fresh = build(frozen_steps=0)
    optimizer = plugin.build(build_groups(method, options), options)
    for step in range(4):
        if step == 3:  # what the first step that moves them would be, had there been none before it
            fresh.load_state_dict(method.state_dict())
        out = method(batch(seed=step))
        out.loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step < 3:
            method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))
            assert torch.equal(method.prototypes.weight, start), step
            state = optimizer.state.get(method.prototypes.weight, {})
            assert not any(torch.as_tensor(value).any() for value in state.values()), step
    assert not torch.equal(method.prototypes.weight, start)
    first = plugin.build(build_groups(fresh, options), options)
    fresh(batch(seed=3)).loss.backward()
    first.step()
    torch.testing.assert_close(method.prototypes.weight, fresh.prototypes.weight)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 5), ({"frozen_epochs": 0.4}, 2), ({"frozen_steps": 3}, 3), ({"frozen_epochs": 2.0, "frozen_steps": 0}, 0)],
)
def test_swav_prototypes_are_frozen_for_epochs_or_steps(options: dict[str, Any], steps: int) -> None:
    method = build(**options)
    moved = []
    for _ in descend(method, 0, 7):
        moved.append(method.prototypes.weight.detach().clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(moved)]
    assert changed == [False] * steps + [True] * (6 - steps)


def test_swav_bf16_autocast_leaves_scores_and_assignments_in_float32() -> None:
    method = build(queue_size=8, queue_start_epoch=0)
    kinds: list[torch.dtype] = []
    method.prototypes.register_forward_hook(lambda module, args, scores: kinds.append(scores.dtype))
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = method(batch())
        method.after_step([out.carry], Progress(1, STEPS, PER_EPOCH))
    assert set(kinds) == {torch.float32}
    assert out.loss.dtype == out.carry["embeddings"].dtype == torch.float32
    assert torch.isfinite(out.loss)


OVERRIDES = [
    "method={name: swav, projector: {hidden_dim: 16, output_dim: 8}, prototypes: 12, queue_size: 20, "
    "queue_start_epoch: 0.5, frozen_steps: 3}",
    "views={preset: swav, local_count: 2, local_size: 8}",
    "optimizer={name: sgd, lr: 0.1}",
]


def test_swav_multi_crop_run_finishes_and_resumes_bitwise(tiny: Any, tmp_path: Path) -> None:
    config = tiny(*OVERRIDES)
    assert [(view.count, view.size) for view in config.views] == [(2, 16), (2, 8)]
    train_run(config, tmp_path / "whole", tell=lambda line: None)
    for stop in (2, 5):  # before the queue is filled, and when it is full and prototypes move
        train_run(
            tiny(*OVERRIDES, f"training.max_steps={stop}"), tmp_path / "parts", resume=True, tell=lambda line: None
        )
    train_run(config, tmp_path / "parts", resume=True, tell=lambda line: None)
    whole, parts = (
        read_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[0]) for name in ("whole", "parts")
    )
    assert whole.step == parts.step == 12
    assert set(whole.tensors) == set(parts.tensors)
    assert [name for name in whole.tensors if not torch.equal(whole.tensors[name], parts.tensors[name])] == []
    assert whole.tensors["method.queue.keys"].shape == (16, 16)
    assert whole.tensors["method.queue.pushed"].item() == 10 * 8


def test_swav_runs_with_its_own_defaults(tiny: Any, tmp_path: Path) -> None:
    """The paper's optimizer, schedule and queue, all sections left out."""
    config = tiny(
        "method={name: swav, projector: {hidden_dim: 16, output_dim: 8}, prototypes: 12}", "optimizer=null",
        "schedule=null", "training.max_steps=2",
    )  # fmt: skip
    assert (config.optimizer.name, config.schedule.name, config.schedule.options.final) == ("larc", "cosine", 0.001)
    assert train_run(config, tmp_path / "a", tell=lambda line: None).step == 2
