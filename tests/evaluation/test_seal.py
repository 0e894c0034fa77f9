"""No choice on the test images, and a backbone that is bitwise the same afterward."""

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
BUILT_IN = {plugin.name: load_found(plugin) for plugin in find("evaluators") if plugin.package == "sslcli"}
QUICK = {"epochs": 1, "batch_size": 10, "iterations": 5}
#: The test images are no multiple of any batch size in use.
TRAIN, TEST = 48, 37


def subject(device: torch.device = CPU, labels: bool = True) -> FrozenSubject:
    parts = [MemoryDataset("train", TRAIN, labels=labels), MemoryDataset("test", TEST, labels=labels)]
    return FrozenSubject(small_trained(), parts[0], parts[1], device, batch_size=10)


def built(cls: type[Evaluator]) -> Evaluator:
    fields = cls.Options.model_fields
    return cls(cls.Options.parse({key: value for key, value in QUICK.items() if key in fields}))


def run(*steps: Any, **attributes: Any) -> EvaluationResult:
    """Runs an evaluator that reads parts, opens them, decides, or calls functions, in order."""

    def evaluate(self: Evaluator, subject: Any) -> EvaluationResult:
        for step in steps:
            if callable(step):
                step(subject)
            elif step == "decide":
                subject.decide({"lr": 0.1})
            elif step.startswith("open "):
                subject.dataset(step.removeprefix("open "))
            else:
                subject.features(step)
        return EvaluationResult({"top1": 0.5}, {})

    cls = type("Planted", (Evaluator,), {"evaluate": evaluate, **attributes})
    return run_evaluator("planted", cls(Options()), subject(), 0)


@pytest.mark.parametrize("peek", ["eval", "open eval"])
def test_an_evaluator_that_peeks_before_it_has_chosen_is_refused(peek):
    with pytest.raises(SslError, match=r"'planted' asks for the test images before it has said what it chose"):
        run("train", peek, "decide")


def test_a_choice_after_the_test_images_were_read_is_refused():
    with pytest.raises(SslError, match="chooses after it has read the test images"):
        run("train", "decide", "eval", "decide")


def test_a_choice_before_is_allowed_and_written_into_the_protocol():
    result = run("train", "open train", require_parts, "decide", "eval", "open eval", "train")
    assert result.protocol["decided"] == {"lr": 0.1}


def test_an_evaluator_that_never_chooses_has_no_seal():
    assert Evaluator.chooses
    assert run("eval", "train", chooses=False).protocol["decided"] is None


def test_a_choice_that_json_cannot_hold_is_refused():
    with pytest.raises(SslError, match="plain data"):
        run(lambda subject: subject.decide({"lr": float("nan")}))


def test_parts_are_checked_through_the_seal_without_breaking_it():
    with pytest.raises(SslError, match="before it has said what it chose"):
        run(require_parts, "eval")


def test_features_without_labels_are_refused_where_labels_are_needed():
    with pytest.raises(UserError, match="have no labels"):
        SealedSubject(subject(labels=False), "planted", seed=0).features("train")


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_built_in_evaluator_peeks_or_changes_the_backbone(name):
    """And none averages the accuracies of batches: of 37 images only a count gives a multiple of 1/37."""
    result = run_evaluator(name, built(BUILT_IN[name]), subject(), 0)
    assert (result.protocol["decided"] is not None) is BUILT_IN[name].chooses
    if BUILT_IN[name].needs_labels:
        right = result.metrics["top1"] * TEST
        assert right == pytest.approx(round(right), abs=1e-6)


def drift(subject):
    subject.backbone.train()(torch.randn(4, 3, 16, 16))
    subject.backbone.eval()


def one_weight(subject):
    with torch.no_grad():
        next(subject.backbone.parameters()).view(-1)[0] += 1e-7


@pytest.mark.parametrize(
    "change", [drift, one_weight, lambda it: it.backbone.requires_grad_(True), lambda it: it.backbone.train()]
)
def test_an_evaluation_that_changes_the_backbone_is_refused_with_its_name(change):
    with pytest.raises(SslError, match="evaluator 'planted' has changed the backbone"):
        run(change)


def test_features_changed_in_place_are_refused_because_they_are_shared():
    with pytest.raises(SslError, match="'planted' has changed the features of the part 'train' in place"):
        run(lambda subject: subject.features("train").features[:2].sub_(1))


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_backbone_on_a_gpu_is_unchanged_and_has_the_digest_that_it_has_on_the_cpu():
    it = subject(torch.device("cuda"))
    assert it.weights_sha256 == subject().weights_sha256 == state_digest(subject().backbone)
    for name, cls in BUILT_IN.items():
        run_evaluator(name, built(cls), it, 0)
