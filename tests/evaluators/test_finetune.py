"""Fine-tuning: a copy is trained, the subject is unchanged, and only a share of the labels is used."""

from __future__ import annotations

import copy

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained
from torch import nn

from sslcli.contracts.errors import UserError
from sslcli.data.subset import Subset
from sslcli.evaluation.seal import SealedSubject, state_digest
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.finetune import evaluator as module
from sslcli.evaluators.finetune.evaluator import Classifier, Finetune, FinetuneOptions
from sslcli.evaluators.probes import training
from sslcli.evaluators.probes.images import ViewBatches
from sslcli.modules.headed import HeadedBackbone, KeptLayersOptions
from sslcli.randomness import seed_for

CPU = torch.device("cpu")


def subject(backbone=None, count=96, classes=4, seed=0):
    labels = torch.arange(count) % classes
    parts = [InMemory(labels, count, 8, split) for split in ("train", "test")]
    return FrozenSubject(trained(backbone), parts[0], parts[1], CPU, seed=seed)


def parse(**options):
    return FinetuneOptions.parse({"epochs": 2, "batch_size": 16, "precision": "fp32", "workers": 0} | options)


def evaluate(on, **options):
    return Finetune(parse(**options)).evaluate(SealedSubject(on, "finetune", seed=on.seed, chooses=True))


@pytest.fixture
def networks(monkeypatch):
    """Every network that is trained, in order."""
    made = []

    class Kept(Classifier):
        def __init__(self, *args):
            super().__init__(*args)
            self.first = copy.deepcopy(self.state_dict())
            made.append(self)

    monkeypatch.setattr(module, "Classifier", Kept)
    return made


def test_the_evaluation_neither_changes_nor_freezes_the_backbone(networks):
    on = subject()
    before, generator = state_digest(on.backbone), torch.get_rng_state()
    evaluate(on, lr=0.1)
    assert state_digest(on.backbone) == before
    assert torch.equal(torch.get_rng_state(), generator)
    moved = [
        name for name, tensor in networks[0].state_dict().items() if not torch.equal(tensor, networks[0].first[name])
    ]
    assert set(moved) == set(networks[0].first)  # every weight, and batch norm's statistics


def test_only_the_share_of_the_labels_is_used(monkeypatch):
    on, seen = subject(count=200), []
    original = Subset.__init__
    monkeypatch.setattr(
        Subset, "__init__", lambda self, data, indices: (seen.append(indices), original(self, data, indices))[1]
    )
    result = evaluate(on, share=0.1, lr=[0.01, 0.1], held_out=0.4)
    labels = on.dataset("train").labels
    held, first, second, last = seen
    assert torch.bincount(labels[last]).tolist() == [5, 5, 5, 5]
    assert torch.equal(first, second)
    assert torch.equal(torch.cat([held, first]).sort().values, last)  # held-out images are part of the share
    assert (result.protocol["train_images"], result.details["held_out_images"]) == (20, 8)


def test_one_image_of_each_class_is_the_smallest_share():
    result = evaluate(subject(), share=0.001, epochs=1)
    assert result.protocol["train_images"] == 4
    with pytest.raises(UserError, match="no class has two images, so none can be held out; raise share"):
        evaluate(subject(), share=0.001, lr=[0.1, 0.2])


def test_it_is_a_literal_loop():
    """Views, copy, two rates, Nesterov's SGD, cosine: the same by torch's own parts."""
    on, options = subject(), parse(lr=0.05, head_lr=0.5)
    found = Finetune(options).evaluate(on)
    views = iter(ViewBatches(on, on.dataset("train"), options, 16, seed_for(0, 12)))
    # The memory format decides which mask dropout's draws become.
    backbone = copy.deepcopy(on.backbone).requires_grad_(True).to(memory_format=torch.channels_last)
    head = nn.Linear(6, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    groups = [{"params": backbone.parameters()}, {"params": head.parameters(), "lr": 0.5}]
    sgd = torch.optim.SGD(groups, 0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 12)
    losses = []
    backbone.train()
    for step in range(12):
        images, labels = next(views)
        torch.manual_seed(seed_for(0, 14, step))
        loss = nn.functional.cross_entropy(
            head(backbone(images.contiguous(memory_format=torch.channels_last)).pooled), labels
        )
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
        losses.append(loss.item())
    views.close()
    assert [row["loss"] for row in found.details["curve"]] == pytest.approx([sum(losses[:6]) / 6, sum(losses[6:]) / 6])


def test_the_head_has_a_rate_of_its_own_and_norms_no_weight_decay(monkeypatch):
    built = []
    plain = training.split_by_role
    monkeypatch.setattr(training, "split_by_role", lambda *args: built.append(plain(*args)) or built[-1])
    evaluate(subject(), lr=0.02, head_lr=5.0, epochs=1, optimizer={"weight_decay": 0.1})
    (weights, excluded), (head, head_bias) = built
    assert weights["names"] == ["backbone.conv.weight"]
    assert excluded["names"] == ["backbone.conv.bias", "backbone.norm.weight", "backbone.norm.bias"]
    assert (head["names"], head_bias["names"]) == (["head.weight"], ["head.bias"])
    assert head["lr_multiplier"] == pytest.approx(250)
    assert [group["weight_decay"] for group in (weights, excluded, head, head_bias)] == [0.1, 0.0, 0.1, 0.0]


def test_layers_kept_of_the_projector_are_fine_tuned_too(networks):
    """SimCLR v2 fine-tunes from the projector's first layer."""
    options = KeptLayersOptions(layers=1, hidden_dim=10)
    evaluate(subject(HeadedBackbone(TinyBackbone(), options)), lr=0.1)
    (network,) = networks
    assert network.head.in_features == 10
    name = "backbone.head.0.weight"
    assert not torch.equal(network.state_dict()[name], network.first[name])


def test_a_rate_that_diverges_is_not_chosen_and_reported_if_it_is_the_only_one():
    result = evaluate(subject(), lr=[1e30, 0.05])
    assert result.protocol["chosen_lr"] == 0.05
    assert result.details["sweep"][0]["held_out_loss"] is None
    assert all(row["held_out_top1"] is not None for row in result.details["curve"])
    with pytest.raises(UserError, match=r"finetune: training with lr 1e\+30 diverged; give a lower one"):
        evaluate(subject(), lr=1e30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_on_a_gpu_in_any_arithmetic(precision):
    labels = torch.arange(96) % 4
    parts = [InMemory(labels, 96, 8, split) for split in ("train", "test")]
    on = FrozenSubject(trained(), parts[0], parts[1], torch.device("cuda"))
    assert evaluate(on, epochs=12, lr=0.1, precision=precision).metrics["top1"] > 0.8
