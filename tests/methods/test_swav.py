"""SwAV: its loss over views of two sizes, frozen prototypes, the queue, and whole runs with multi-crop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Progress, RunInfo, Step, View
from sslcli.losses import sinkhorn, swapped_prediction
from sslcli.methods.swav import SwAV
from sslcli.modules.sync_norm import synchronise_batch_norm
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import find, load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.training.train import train as train_run

COUNT, STEPS, PER_EPOCH = 8, 10, 5
SMALL: dict[str, Any] = {"projector": {"hidden_dim": 12, "output_dim": 6}, "prototypes": 10, "queue_size": 0}
OPTIMIZERS = [plugin.name for plugin in find("optimizers") if plugin.package == "sslcli"]


class Small(Backbone):
    """A convolution with a batch norm: any size → 7 features."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=7)
        self.convolution = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Small:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.norm(self.convolution(x)).relu().mean(dim=(2, 3)))


def build(seed: int = 0, batch_size: int = COUNT, **options: Any) -> SwAV:
    torch.manual_seed(seed)
    data = DataInfo("random", 3, (8, 8), (0.5,) * 3, (0.2,) * 3)
    run = RunInfo(STEPS, PER_EPOCH, STEPS // PER_EPOCH, batch_size, 1, data)
    return SwAV(Small(), SwAV.Options.parse({**SMALL, **options}), run).train()


def batch(seed: int = 1, sides: tuple[int, ...] = (8, 8, 5, 5, 5)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(COUNT, 3, 8, 8, generator=generator)
    views = [images[..., :side, :side] + 0.3 * torch.randn(COUNT, 3, side, side, generator=generator) for side in sides]
    return Batch([View(view) for view in views], None, torch.arange(COUNT), {})


def descend(method: SwAV, first: int, last: int, lr: float = 0.1) -> Iterator[Step]:
    """Plain gradient descent; steps `first` to `last` − 1, each with its own batch. Yields before the step is made."""
    for step in range(first, last):
        out = method(batch(seed=step))
        yield out
        method.zero_grad()
        out.loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
        method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))


def embed(method: SwAV, data: Batch) -> list[Tensor]:
    """Embeddings view by view, with the batch norms' groups written out: each resolution, and all views in the head."""
    sizes = sorted({view.image.shape[-1] for view in data.views}, reverse=True)
    groups = [torch.cat([view.image for view in data.views if view.image.shape[-1] == size]) for size in sizes]
    features = torch.cat([method.backbone(group).pooled for group in groups])
    return list(F.normalize(method.projector(features), dim=1).split(COUNT))


def test_swav_loss_is_put_together_as_in_the_paper() -> None:
    method, data = build(temperature=0.2, epsilon=0.1, sinkhorn_iterations=2), batch()
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    expected = swapped_prediction(scores, [sinkhorn(s, 0.1, 2) for s in scores[:2]], 0.2)
    torch.testing.assert_close(method(data).loss, expected)


def test_swav_assigned_views_are_the_first_ones_alone() -> None:
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


def test_swav_training_makes_views_agree_since_the_minus_is_there() -> None:
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


def test_swav_refuses_views_it_cannot_work_with() -> None:
    with pytest.raises(UserError, match="swav needs 2 or more views of the first one's size, and there are 1"):
        build()(batch(sides=(8, 5)))
    with pytest.raises(UserError, match="swav needs its largest views first"):
        build()(batch(sides=(5, 5, 8)))
    with pytest.raises(UserError, match="swav needs 3 or more"):
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
        method.prototypes.normalise()
    assert method(data).metrics["prototype_use"] < 2


def test_swav_prototypes_are_normalised_before_every_forward() -> None:
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


def test_swav_queue_smaller_than_the_batch_is_no_queue_and_does_not_crash() -> None:
    short, none = build(queue_size=COUNT - 1, queue_start_epoch=0), build(queue_size=0)
    assert list(short.state_dict()) == list(none.state_dict())
    for a, b in zip(descend(short, 0, 3), descend(none, 0, 3), strict=True):
        assert torch.equal(a.loss, b.loss)


@pytest.mark.parametrize(("size", "length"), [(8, 8), (15, 8), (20, 16), (3840, 3840)])
def test_swav_queue_length_is_rounded_down_to_whole_batches(size: int, length: int) -> None:
    assert build(queue_size=size).queue.keys.shape == (length, 2 * 6)


def test_swav_queue_is_filled_from_its_epoch_and_used_once_full() -> None:
    method, none = build(queue_size=16, queue_start_epoch=0.4), build()
    random = method.queue.keys.clone()
    for step, out in enumerate(descend(method, 0, 6)):
        pushed = max(0, step - 2) * COUNT
        assert method.queue.pushed.item() == pushed
        assert torch.equal(method.queue.keys, random) == (pushed == 0)
        none.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("queue.")})
        # Its first two batches come in after steps 2 and 3.
        assert torch.allclose(out.loss, none(batch(seed=step)).loss) == (step < 4), step


def test_swav_queue_takes_part_with_the_current_prototypes() -> None:
    method = build(queue_size=16, queue_start_epoch=0, frozen_steps=0)
    for _ in descend(method, 0, 3):
        pass
    with torch.no_grad():
        method.prototypes.weight.copy_(method.prototypes.weight.roll(3, 1))
    data = batch(seed=3)
    scores = [z @ method.prototypes.weight.T for z in embed(method, data)]
    q = []
    for view, keys in enumerate(method.queue.keys.split(6, dim=1)):
        q.append(sinkhorn(torch.cat((scores[view], keys @ method.prototypes.weight.T)))[:COUNT])
    torch.testing.assert_close(method(data).loss, swapped_prediction(scores, q))


def test_swav_queue_holds_the_last_embeddings_of_each_global_view() -> None:
    method = build(queue_size=16, queue_start_epoch=0)
    seen = [out.carry["embeddings"] for out in descend(method, 0, 3)]
    assert torch.equal(method.queue.keys, torch.cat((seen[2], seen[1])))
    method = build(queue_size=16, queue_start_epoch=0)
    z = embed(method, batch(seed=0))
    torch.testing.assert_close(method(batch(seed=0)).carry["embeddings"], torch.cat(z[:2], dim=1).detach())


def test_swav_queue_takes_every_micro_batch() -> None:
    method = build(queue_size=16, batch_size=16, queue_start_epoch=0)
    found = [method(batch(seed=seed)).carry for seed in range(2)]
    method.after_step(found, Progress(1, STEPS, PER_EPOCH))
    assert torch.equal(method.queue.keys, torch.cat([carry["embeddings"] for carry in found]))


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


def test_swav_defaults_are_the_papers() -> None:
    options = SwAV.Options.parse({})
    assert (options.projector.layers, options.projector.hidden_dim, options.projector.output_dim) == (2, 2048, 128)
    assert (options.prototypes, options.temperature, options.epsilon, options.sinkhorn_iterations) == (
        3000,
        0.1,
        0.05,
        3,
    )
    assert (options.queue_size, options.queue_start_epoch, options.frozen_epochs) == (3840, 15, 1)
    layers = [type(m) for m in build().projector.modules() if not list(m.children())]
    assert layers == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    optimizer = load("optimizers", "larc").Options.parse(
        {k: v for k, v in SwAV.defaults["optimizer"].items() if k != "name"}
    )
    assert (optimizer.lr, optimizer.weight_decay, optimizer.exclude, optimizer.clip) == (0.6, 1e-6, (), False)


def test_swav_views_are_multi_crop_but_for_small_images() -> None:
    options = SwAV.Options()
    assert SwAV.recipe(options, 224) == {"preset": "swav"}
    assert SwAV.recipe(options, 96) == {"preset": "swav"}
    assert SwAV.recipe(options, 32) == {"preset": "simclr", "strength": 1.0, "blur": 0.5}


OVERRIDES = [
    "method={name: swav, projector: {hidden_dim: 16, output_dim: 8}, prototypes: 12, queue_size: 20, "
    "queue_start_epoch: 0.5, frozen_steps: 3}",
    "views={preset: swav, local_count: 2, local_size: 8}",
    "optimizer={name: sgd, lr: 0.1}",
]


def test_swav_multi_crop_run_goes_through_and_resumes_to_the_bit(tiny: Any, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_swav_multi_crop_with_a_queue_is_one_graph_that_serves_every_step() -> None:
    from torch._dynamo.testing import CompileCounter  # slow to import, and processes below import this file

    method, graphs = build(queue_size=16, queue_start_epoch=0), CompileCounter()
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    for _ in descend(method, 0, 5):
        pass
    assert graphs.frame_count == 1


def two_steps(rows: slice) -> dict[str, Tensor]:
    """The third step's gradients and the queue, of this process's share of each batch, in float64."""
    method = synchronise_batch_norm(build(queue_size=16, queue_start_epoch=0).double(), torch.device("cpu"))
    for step in range(3):
        data = batch(seed=step)
        data.views = [View(view.image[rows].double()) for view in data.views]
        method.zero_grad()
        out = method(data)
        out.loss.backward()
        method.after_step([out.carry], Progress(step + 1, STEPS, PER_EPOCH))
    found = {name: parameter.grad for name, parameter in method.named_parameters()} | {"loss": out.loss.detach()}
    return {**found, "keys": method.queue.keys}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        half = COUNT // 2
        found = two_steps(slice(half * rank, half * rank + half))
        for tensor in found.values():
            dist.all_reduce(tensor)
            tensor /= 2
        if rank == 0:
            torch.save(found, f"{folder}/found.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_swav_on_two_processes_is_swav_on_one_with_the_queue_counted_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    found, alone = torch.load(tmp_path / "found.pt"), two_steps(slice(None))
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
