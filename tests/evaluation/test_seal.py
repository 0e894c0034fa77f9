"""Honesty, held in code: no choice on the images that are judged, and a backbone that is the same to the bit after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained

from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator
from sslcli.contracts.options import Options
from sslcli.evaluation.evaluate import run_evaluator
from sslcli.evaluation.seal import SealedSubject, state_digest
from sslcli.evaluation.subject import FrozenSubject, require_parts
from sslcli.plugins import find, load_found
from sslcli.testing.stand_ins import MemoryDataset, small_trained

CPU = torch.device("cpu")
BUILT_IN = [plugin for plugin in find("evaluators") if plugin.package == "sslcli"]
QUICK = {"epochs": 1, "batch_size": 10, "iterations": 5}
#: The judged images are no multiple of any batch size in use.
TRAIN, JUDGED = 48, 37


def subject(batch_size: int = 10, **settings: Any) -> FrozenSubject:
    parts = [MemoryDataset("train", TRAIN), MemoryDataset("test", JUDGED)]
    return FrozenSubject(small_trained(), parts[0], parts[1], CPU, batch_size=batch_size, **settings)


def built(cls: type[Evaluator]) -> Evaluator:
    options = cls.Options
    return cls(options.parse({key: value for key, value in QUICK.items() if key in options.model_fields}))


class Plain(Evaluator):
    """Reads what it is told to, in order."""

    steps: tuple[str, ...] = ()

    def evaluate(self, subject):
        for step in self.steps:
            if step == "decide":
                subject.decide({"lr": 0.1})
            elif step.startswith("open "):
                subject.dataset(step.removeprefix("open "))
            else:
                subject.features(step)
        return EvaluationResult({"top1": 0.5}, {})


def judge(*steps: str, **attributes: Any) -> EvaluationResult:
    cls = type("Planted", (Plain,), {"steps": steps, **attributes})
    return run_evaluator("planted", cls(Options()), subject(), 0)


@pytest.mark.parametrize("peek", ["eval", "open eval"])
def test_an_evaluator_that_peeks_before_it_has_chosen_is_refused(peek):
    with pytest.raises(SslError, match=r"evaluator 'planted' asks for .* before it has said what it chose"):
        judge("train", peek, "decide")


def test_a_choice_after_the_judged_images_were_read_is_refused():
    with pytest.raises(SslError, match="decides after it has read the images"):
        judge("train", "decide", "eval", "decide")


def test_a_choice_before_is_allowed_and_written_into_the_protocol():
    result = judge("train", "open train", "decide", "eval", "open eval", "train")
    assert result.protocol["decided"] == {"lr": 0.1}


def test_an_evaluator_that_never_chooses_has_no_seal():
    assert judge("eval", "train", chooses=False).protocol["decided"] is None


def test_the_seal_is_on_for_an_evaluator_that_says_nothing_about_it():
    assert Evaluator.chooses


def test_a_choice_that_json_cannot_hold_is_refused():
    sealed = SealedSubject(subject(), "planted", seed=0)
    with pytest.raises(SslError, match="plain data"):
        sealed.decide({"lr": float("nan")})


def test_parts_are_checked_through_the_seal_without_breaking_it():
    sealed = SealedSubject(subject(), "planted", seed=0)
    assert require_parts(sealed) == 4
    with pytest.raises(SslError, match="before it has said"):
        sealed.features("eval")


def test_features_without_labels_are_refused_where_labels_are_needed_and_given_where_not():
    parts = [MemoryDataset("train", 8, labels=False), MemoryDataset("test", 8, labels=False)]
    bare = FrozenSubject(small_trained(), parts[0], parts[1], CPU)
    with pytest.raises(UserError, match="have no labels"):
        SealedSubject(bare, "planted", seed=0).features("train")
    assert SealedSubject(bare, "planted", seed=0, needs_labels=False).features("train").labels is None


@pytest.mark.parametrize("plugin", BUILT_IN, ids=lambda plugin: plugin.name)
def test_no_built_in_evaluator_peeks_or_changes_the_backbone(plugin):
    it, given = subject(), small_trained()
    before = state_digest(it.backbone)
    result = run_evaluator(plugin.name, built(load_found(plugin)), it, 0)
    assert state_digest(it.backbone) == before
    assert not any(module.training for module in it.backbone.modules())
    assert all(torch.equal(a, b) for a, b in zip(it.backbone.buffers(), given.backbone.buffers(), strict=True))
    if load_found(plugin).chooses:
        assert result.protocol["decided"] is not None


def drift(backbone):
    backbone.train()(torch.randn(4, 3, 16, 16))
    backbone.eval()


def unfreeze(backbone):
    backbone.requires_grad_(True)


def train_mode(backbone):
    backbone.train()


def one_weight(backbone):
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-7


@pytest.mark.parametrize("change", [drift, unfreeze, train_mode, one_weight])
@pytest.mark.parametrize("plugin", BUILT_IN, ids=lambda plugin: plugin.name)
def test_an_evaluation_that_changes_or_freezes_the_backbone_is_refused_with_its_name(plugin, change):
    """Probes run in training mode so that frozen batch norm drifts: one of the bugs of older libraries."""
    cls = load_found(plugin)

    class Planted(cls):
        def evaluate(self, subject):
            result = EvaluationResult({"top1": 0.5}, {})
            change(subject.backbone)
            return result

    with pytest.raises(SslError, match=f"evaluator '{plugin.name}' has changed the backbone"):
        run_evaluator(plugin.name, Planted(built(cls).options), subject(), 0)


def test_features_changed_in_place_are_refused_because_others_share_them():
    class Centers(Plain):
        chooses = False

        def evaluate(self, subject):
            subject.features("train").features[:2].sub_(1)
            return super().evaluate(subject)

    with pytest.raises(SslError, match="'centers' has changed the features of the part 'train' in place"):
        run_evaluator("centers", Centers(Options()), subject(), 0)


@pytest.mark.parametrize("name", [plugin.name for plugin in BUILT_IN if load_found(plugin).needs_labels])
def test_accuracy_is_no_unweighted_mean_of_batch_accuracies(name):
    """37 images in batches of 10: only a count of images gives a multiple of 1/37."""
    (plugin,) = [plugin for plugin in BUILT_IN if plugin.name == name]
    result = run_evaluator(name, built(load_found(plugin)), subject(), 0)
    right = result.metrics["top1"] * JUDGED
    assert right == pytest.approx(round(right), abs=1e-6)


def test_no_evaluation_is_in_training_mode_whatever_mode_it_was_given_in():
    """With dropout and batch statistics the features would be others each time, and depend on the batch."""
    labels = torch.arange(20) % 4
    it = trained(TinyBackbone())
    given = copy.deepcopy(it)
    given.backbone.train()
    parts = [InMemory(labels, 20), InMemory(labels, 20, split="test")]
    expected = FrozenSubject(it, parts[0], parts[1], CPU, batch_size=20).features("eval").features
    found = FrozenSubject(given, parts[0], parts[1], CPU, batch_size=7).features("eval").features
    torch.testing.assert_close(found, expected)
    assert given.backbone.training
    assert torch.equal(given.backbone.norm.running_mean, it.backbone.norm.running_mean)


def test_a_digest_sees_a_bit_a_mode_and_a_flag():
    network = small_trained().backbone
    digests = {state_digest(network)}
    for change in (one_weight, train_mode, lambda it: it.requires_grad_(False)):
        change(network)
        digests.add(state_digest(network))
    assert len(digests) == 4
    assert state_digest(copy.deepcopy(network)) in digests


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_backbone_on_a_gpu_is_judged_unchanged_and_has_the_digest_that_it_has_on_the_cpu():
    parts = [MemoryDataset("train", TRAIN), MemoryDataset("test", JUDGED)]
    it = FrozenSubject(small_trained(), parts[0], parts[1], torch.device("cuda"))
    assert it.weights_sha256 == subject().weights_sha256
    for plugin in BUILT_IN:
        run_evaluator(plugin.name, built(load_found(plugin)), it, 0)
