"""The classic linear protocol: fresh views of each image, a backbone that stays frozen, its own normalization."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained
from PIL import Image
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.data.subset import Subset, stratified_share, stratified_split
from sslcli.datasets.folder import Folder
from sslcli.evaluation.extraction import normalizer
from sslcli.evaluation.seal import SealedSubject, state_digest
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.linear.augmented import AugmentedFeatures
from sslcli.evaluators.linear.evaluator import Linear, LinearOptions
from sslcli.evaluators.probes.images import ViewBatches, normalization_of

CPU = torch.device("cpu")


class MeanColor(Backbone):
    """Mean color and its square: enough for images whose color tells the class."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)
        self.scale = nn.Parameter(torch.ones(6))

    @classmethod
    def build(cls, options, channels, image_size):
        return cls()

    def forward(self, x, mask=None):
        mean = x.mean(dim=(2, 3))
        return Features(torch.cat([mean, mean.square()], dim=1) * self.scale)


def subject(backbone=None, count=96, classes=4, seed=0, resident=True, size=8):
    labels = torch.arange(count) % classes
    parts = [InMemory(labels, count, size, split, resident) for split in ("train", "test")]
    return FrozenSubject(trained(backbone, size=8), parts[0], parts[1], CPU, seed=seed)


def evaluate(on, **options):
    asked = {"protocol": "augmented", "epochs": 3, "batch_size": 32, "workers": 0} | options
    return Linear(LinearOptions.parse(asked)).evaluate(SealedSubject(on, "linear", seed=on.seed, chooses=True))


def test_a_toy_problem_is_solved_and_the_protocol_says_how(messages):
    result = evaluate(subject(MeanColor()), epochs=20, batch_size=24, lr=[0.01, 0.3, 1.0])
    assert result.metrics["top1"] > 0.95
    json.dumps([result.protocol, result.details], allow_nan=False)
    assert result.protocol["protocol"] == "augmented"
    names = [operation["name"] for operation in result.protocol["train_view"]["operations"]]
    assert names == ["crop", "flip"]
    assert result.protocol["train_view"]["operations"][0]["options"]["scale"] == [0.08, 1.0]
    assert result.details["curve"][-1]["held_out_top1"] == result.details["held_out_top1"]
    assert len(result.details["sweep"]) == 6
    assert any(line.startswith("linear: epoch 20 of 20") for line in messages)


def test_a_probe_never_runs_the_frozen_backbone_in_training_mode():
    """Batch norm's statistics would drift, dropout would be on: another network than was trained."""
    backbone = TinyBackbone()
    on = subject(backbone)
    before = state_digest(on.backbone)
    modes = []
    on.backbone.norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    evaluate(on, lr=0.1, standardize=False)
    on.backbone.norm._forward_hooks.clear()
    assert state_digest(on.backbone) == before
    assert len(modes) > 3
    assert not any(modes)


def test_equal_seeds_give_equal_numbers_and_other_seeds_other_ones():
    first, second, other = (evaluate(subject(seed=seed), lr=[0.03, 0.3]) for seed in (0, 0, 1))
    assert first.metrics == second.metrics
    assert first.details == second.details
    assert first.details["curve"] != other.details["curve"]


def test_each_sample_and_each_epoch_has_a_view_of_its_own():
    on = subject(count=16)
    on.dataset("train").pixels[:] = on.dataset("train").pixels[:1]
    views = ViewBatches(on, on.dataset("train"), LinearOptions.parse({"protocol": "augmented"}), 16, 0)
    stream = iter(views)
    first, again = next(stream)[0], next(stream)[0]
    stream.close()
    assert len({tuple(image.flatten().tolist()) for image in first}) == 16
    assert not torch.equal(first, again)


def test_views_are_normalized_as_the_backbone_was_trained_and_not_as_the_data_are():
    on = subject(count=8)
    mean, std = normalization_of(on, 3)
    assert mean == pytest.approx(list(on.card.mean), abs=1e-5)
    assert std == pytest.approx(list(on.card.std), abs=1e-5)
    options = LinearOptions.parse({"protocol": "augmented", "views": {"preset": "probe_eval"}})
    views = ViewBatches(on, Subset(on.dataset("train"), torch.arange(8)), options, 8, 0)
    images, labels = next(iter(views))
    order = [int(((found - expected).abs().amax(dim=(1, 2, 3))).argmin()) for found, expected in _pairs(on, images)]
    assert sorted(order) == list(range(8))
    assert torch.equal(on.dataset("train").labels[order], labels)


def _pairs(on, images):
    plain = normalizer(on.card.mean, on.card.std, CPU)(on.dataset("train").pixels)
    for image in images:
        assert float((plain - image).abs().amax(dim=(1, 2, 3)).min()) < 1e-4
        yield plain, image


def test_the_sweep_is_a_literal_loop_at_the_chosen_rate():
    """One pass for all rates, against autograd, torch's own SGD and the same views, for the chosen rate alone."""
    on = subject()
    found = evaluate(on, lr=[0.03, 0.3], standardize=False, refit=False, batch_size=22)
    lr = found.protocol["chosen_lr"]
    kept, _ = stratified_split(on.dataset("train").labels, 0.1, on.seed)
    options = LinearOptions.parse({"protocol": "augmented", "workers": 0})
    batches = AugmentedFeatures(on, options).batches(kept, 22, on.seed)
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3 * batches.steps_per_epoch)
    stream, losses = iter(batches), []
    for _ in range(3):
        total = 0.0
        for _ in range(batches.steps_per_epoch):
            features, labels = next(stream)
            loss = nn.functional.cross_entropy(layer(features), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
            total += loss.item()
        losses.append(total / batches.steps_per_epoch)
    stream.close()
    assert [row["loss"] for row in found.details["curve"]] == pytest.approx(losses, rel=1e-5)
    test = on.features("eval")
    right = (layer(test.features).argmax(dim=1) == test.labels).double().mean()
    assert found.metrics["top1"] == pytest.approx(float(right))


def test_workers_and_resident_images_see_the_same_pixels():
    inside, outside = (evaluate(subject(MeanColor(), resident=r), lr=0.3, standardize=False) for r in (True, False))
    # Workers hand on 8-bit crops, so that the last bits differ.
    for a, b in zip(inside.details["curve"], outside.details["curve"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_folders_of_images_of_uneven_sizes_are_probed_in_worker_processes(tmp_path):
    for split in ("train", "val"):
        for number, color in enumerate([(220, 30, 30), (30, 30, 220)]):
            folder = tmp_path / split / f"class {number}"
            folder.mkdir(parents=True)
            for place in range(8):
                Image.new("RGB", (20 + place, 26), color).save(folder / f"{place}.png")
    parts = [Folder(Folder.Options.parse({"root": str(tmp_path), "split": split})) for split in ("train", "val")]
    on = FrozenSubject(trained(MeanColor()), parts[0], parts[1], CPU)
    result = evaluate(on, lr=[0.3, 1.0], standardize=False, epochs=8, batch_size=4, workers=1)
    assert result.metrics["top1"] == 1.0


def test_held_out_images_are_never_trained_on():
    """Their labels are wrong; a training that saw them would not fit the others as it does."""
    on = subject(MeanColor())
    seen = []
    original = ViewBatches.__init__

    def spy(self, subject, data, *rest):
        seen.append(data)
        original(self, subject, data, *rest)

    ViewBatches.__init__ = spy
    try:
        result = evaluate(on, lr=[0.1, 0.3])
    finally:
        ViewBatches.__init__ = original
    sweep, refit = seen
    assert len(sweep) + result.details["held_out_images"] == len(refit) == 96
    assert len(set(sweep.indices.tolist())) == len(sweep)


def test_a_share_of_the_labels_is_the_same_of_each_class_and_at_least_one():
    labels = torch.cat([torch.zeros(200), torch.ones(40), torch.full((3,), 2.0)]).long()
    small, large = stratified_share(labels, 0.05, 0), stratified_share(labels, 0.5, 0)
    assert torch.bincount(labels[small]).tolist() == [10, 2, 1]
    assert torch.bincount(labels[large]).tolist() == [100, 20, 2]
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(stratified_share(labels, 1.0, 0), torch.arange(243))
    assert not torch.equal(small, stratified_share(labels, 0.05, 1))
    assert not torch.equal(small[:10], torch.arange(10))
