"""The classic linear protocol: fresh views of each image, a frozen backbone with its own normalization."""

from __future__ import annotations

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained
from PIL import Image
from torch import nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.data.subset import Subset, stratified_split
from sslcli.datasets.folder import Folder
from sslcli.evaluation.seal import SealedSubject, state_digest
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.linear.evaluator import Linear, LinearOptions
from sslcli.evaluators.linear.sources import AugmentedFeatures
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


def subject(backbone=None, count=96):
    labels = torch.arange(count) % 4
    return FrozenSubject(trained(backbone), *(InMemory(labels, count, split=split) for split in ("train", "test")), CPU)


def evaluate(on, **options):
    asked = {"protocol": "augmented", "epochs": 3, "batch_size": 32, "workers": 0} | options
    return Linear(LinearOptions.parse(asked)).evaluate(SealedSubject(on, "linear", seed=on.seed, chooses=True))


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
    plain = on.normalize(on.dataset("train").pixels)
    differences = (plain[:, None] - images).abs().amax(dim=(2, 3, 4))
    assert float(differences.min(dim=0).values.max()) < 1e-4
    order = differences.argmin(dim=0)
    assert order.sort().values.tolist() == list(range(8))
    assert torch.equal(on.dataset("train").labels[order], labels)


def test_the_sweep_is_a_literal_loop_at_the_chosen_rate():
    """One pass for all rates, against autograd, torch's own SGD and the same views, for the chosen rate alone."""
    on = subject()
    found = evaluate(on, lr=[0.03, 0.3], standardize=False, refit=False, batch_size=22)
    lr, view = found.protocol["chosen_lr"], found.protocol["train_view"]
    assert [operation["name"] for operation in view["operations"]] == ["crop", "flip"]
    assert view["operations"][0]["options"]["scale"] == [0.08, 1.0]
    kept, _ = stratified_split(on.dataset("train").labels, 0.1, on.seed)
    options = LinearOptions.parse({"protocol": "augmented", "workers": 0})
    stream, steps = AugmentedFeatures(on, options).batches(kept, 22, on.seed)
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3 * steps)
    losses = []
    for _ in range(3):
        total = 0.0
        for _ in range(steps):
            features, labels = next(stream)
            loss = nn.functional.cross_entropy(layer(features), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
            total += loss.item()
        losses.append(total / steps)
    stream.close()
    assert [row["loss"] for row in found.details["curve"]] == pytest.approx(losses, rel=1e-5)
    test = on.features("eval")
    right = (layer(test.features).argmax(dim=1) == test.labels).double().mean()
    assert found.metrics["top1"] == pytest.approx(float(right))


def test_folders_of_images_of_uneven_sizes_are_probed_in_worker_processes(tmp_path, messages):
    for split in ("train", "val"):
        for number, color in enumerate([(220, 30, 30), (30, 30, 220)]):
            folder = tmp_path / split / f"class {number}"
            folder.mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (20 + index, 26), color).save(folder / f"{index}.png")
    parts = [Folder(Folder.Options.parse({"root": str(tmp_path), "split": split})) for split in ("train", "val")]
    on = FrozenSubject(trained(MeanColor()), parts[0], parts[1], CPU)
    result = evaluate(on, lr=[0.3, 1.0], standardize=False, epochs=8, batch_size=4, workers=1)
    assert any(line.startswith("linear: epoch 8 of 8") for line in messages)
    assert result.metrics["top1"] == 1.0
