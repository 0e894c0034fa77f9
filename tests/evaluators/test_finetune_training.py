"""Fine-tuning as MAE and DeiT do it: rates by layer, mixed images, drop path, averaged weights."""

from __future__ import annotations

import logging

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained
from pydantic import ValidationError
from timm.utils import ModelEmaV2
from torch import nn

from sslcli.config.options import overrides_as_data, parse_options
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.evaluation.seal import SealedSubject
from sslcli.evaluation.selection import choose_evaluators
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.finetune import evaluator as module
from sslcli.evaluators.finetune.averaging import AveragedWeights
from sslcli.evaluators.finetune.evaluator import Finetune, FinetuneOptions
from sslcli.evaluators.probes import training
from sslcli.modules.drop_path import drop_path_rates
from sslcli.plugins import load

TINY = {"patch_size": 4, "depth": 2, "heads": 1}


def vit(**options):
    cls = load("backbones", "vit_tiny")
    torch.manual_seed(0)
    return cls.build(cls.Options.parse(TINY | options), 3, 8)


def subject(backbone=None, count=48):
    labels = torch.arange(count) % 4
    parts = [InMemory(labels, count, 8, split) for split in ("train", "test")]
    return FrozenSubject(trained(backbone), parts[0], parts[1], torch.device("cpu"))


def evaluate(on, **options):
    tiny = {"epochs": 1, "batch_size": 16, "precision": "fp32", "workers": 0, "lr": 0.01}
    finetune = Finetune(FinetuneOptions.parse(tiny | options))
    return finetune.evaluate(SealedSubject(on, "finetune", seed=0, chooses=True))


@pytest.fixture
def built(monkeypatch):
    """The torch groups of every optimizer."""
    made = []
    plain = training.split_by_role
    monkeypatch.setattr(training, "split_by_role", lambda *args: made.extend(plain(*args)) or plain(*args))
    return made


def by_mae(named, blocks, decay, weight_decay):
    """Each parameter's factor and weight decay by `param_groups_lrd` of MAE's util/lr_decay.py, in our words."""
    last, wanted = blocks + 1, {}
    for name, parameter in named:
        none = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            depth = 0
        else:
            depth = int(name.split(".")[1]) + 1 if name.startswith("blocks") else last
        wanted[name] = (decay ** (last - depth), 0.0 if none else weight_decay)
    return wanted


@pytest.mark.parametrize("feature", ["pooled", "tokens"])
def test_rates_and_weight_decay_of_every_parameter_are_maes(built, feature):
    labels = torch.arange(32) % 4
    parts = [InMemory(labels, 32, 8, split) for split in ("train", "test")]
    on = FrozenSubject(trained(vit()), parts[0], parts[1], torch.device("cpu"), feature=feature)
    result = evaluate(on, layer_decay=0.65, lr=1e-3, optimizer={"name": "adamw", "weight_decay": 0.05})
    found = {
        name.removeprefix("backbone.").removeprefix("backbone."): (group["lr_multiplier"], group["weight_decay"])
        for group in built
        for name in group["names"]
    }
    head = nn.Linear(192, 4)
    named = [*vit().named_parameters(), ("head.weight", head.weight), ("head.bias", head.bias)]
    wanted = by_mae(named, 2, 0.65, 0.05)
    assert set(found) == set(wanted)
    assert {name: pytest.approx(pair) for name, pair in wanted.items()} == found
    assert result.protocol["layer_decay"] == 0.65


def test_a_resnets_stem_and_stages_have_their_rates_and_the_head_its_own(built):
    cls = load("backbones", "resnet18")
    network = cls.build(cls.Options.parse({"width": 4, "stem": "small"}), 3, 8)
    evaluate(subject(network), layer_decay=0.5, lr=0.1, head_lr=1.0)
    factors = {name: group["lr_multiplier"] for group in built for name in group["names"]}
    assert factors["backbone.network.conv1.weight"] == 0.5**5
    assert [factors[f"backbone.network.layer{i}.0.conv1.weight"] for i in (1, 2, 3, 4)] == [0.5**4, 0.5**3, 0.25, 0.5]
    assert factors["head.weight"] == pytest.approx(10)


def test_layer_decay_needs_layers():
    with pytest.raises(UserError, match="layer_decay: this backbone has no layers to tell apart"):
        evaluate(subject(), layer_decay=0.7)


def test_drop_path_grows_in_the_copy_alone(monkeypatch):
    on, rates = subject(vit(depth=3)), []
    plain = module.Classifier.forward
    monkeypatch.setattr(
        module.Classifier, "forward", lambda self, x: rates.append(drop_path_rates(self)) or plain(self, x)
    )
    assert evaluate(on, drop_path=0.2).protocol["drop_path"] == 0.2
    assert rates[0] == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])
    assert set(drop_path_rates(on.backbone)) == {0.0}
    with pytest.raises(UserError, match="drop_path: this backbone has no drop-path layers whose rate can be set"):
        evaluate(subject(), drop_path=0.1)


def test_without_the_option_drop_path_is_that_of_pre_training():
    assert evaluate(subject(vit(drop_path=0.3))).protocol["drop_path"] == pytest.approx(0.3)


def test_mixed_images_and_smoothed_labels_reach_the_loss(monkeypatch):
    seen, drawn = [], []
    plain, draw = module.Classifier.forward, module.draw_mixing
    monkeypatch.setattr(module.Classifier, "forward", lambda self, x: seen.append(x) or plain(self, x))
    monkeypatch.setattr(module, "draw_mixing", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    before = evaluate(subject(vit()))
    plain_inputs = list(seen)
    seen.clear(), drawn.clear()
    result = evaluate(subject(vit()), mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    assert [inputs.shape for inputs in seen] == [(16, 3, 8, 8)] * 3
    for mixing, inputs, unmixed in zip(drawn, seen, plain_inputs, strict=True):
        assert torch.equal(inputs, mixing.images(unmixed))
    smoothed = evaluate(subject(vit()), label_smoothing=0.1)
    assert len({each.details["curve"][0]["loss"] for each in (before, result, smoothed)}) == 3
    asked = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "switch_probability": 0.5, "mixing_probability": 1.0}
    assert {name: result.protocol[name] for name in asked} == asked


class WithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def test_averaged_weights_are_timms_and_the_counter_is_the_networks():
    torch.manual_seed(0)
    network = WithNorm()
    ours, theirs = AveragedWeights(network, 0.9), ModelEmaV2(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ours.follow(network)
        theirs.update(network)
    expected = theirs.module.state_dict()
    assert int(ours.network.norm.num_batches_tracked) == 5
    for name, value in ours.network.state_dict().items():
        if name != "norm.num_batches_tracked":
            torch.testing.assert_close(value, expected[name])
            assert not torch.equal(value, network.state_dict()[name])


def test_the_averaged_weights_are_the_ones_that_are_tested(monkeypatch):
    tested, kept = [], []
    scores, follow = module.Finetune._scores, AveragedWeights.follow
    monkeypatch.setattr(
        module.Finetune, "_scores", lambda self, network, data: tested.append(network) or scores(self, network, data)
    )
    monkeypatch.setattr(AveragedWeights, "follow", lambda self, network: kept.append(self) or follow(self, network))
    result = evaluate(subject(), ema_decay=0.5, lr=[0.01, 0.1])
    assert {id(network) for network in tested} <= {id(each.network) for each in kept}
    assert (
        result.details["evaluated_weights"] == result.protocol["evaluated_weights"] == "moving average with decay 0.5"
    )
    assert evaluate(subject()).details["evaluated_weights"] == "last"


def test_an_average_that_is_mostly_the_start_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        evaluate(subject(), ema_decay=0.5, epochs=2)
        assert not caplog.messages
        evaluate(subject(), ema_decay=0.99)
    assert caplog.messages == ["finetune: 97% of the averaged weights are those at the start; lower ema_decay"]


def test_everything_at_once_trains_in_bf16_and_repeats_itself():
    options = {
        "layer_decay": 0.65, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "ema_decay": 0.5,
        "precision": "bf16", "lr": 1e-3, "optimizer": {"name": "adamw"}, "batch_size": 8,
    }  # fmt: skip
    first, second = (evaluate(subject(vit(), 16), **options) for _ in range(2))
    assert first.details["curve"] == second.details["curve"]
    assert all(row["loss"] > 0 for row in first.details["curve"])


def test_mixing_needs_two_images():
    with pytest.raises(ValidationError, match="mix the images of a batch: set batch_size to 2 or more"):
        FinetuneOptions.parse({"mixup": 0.8, "batch_size": 1})
    assert FinetuneOptions.parse({"mixup": 0.8, "batch_size": 1, "mixing_probability": 0}).mixup == 0.8
    labels = torch.tensor([0, 1, 2])
    parts = [InMemory(labels, 3, 8, split) for split in ("train", "test")]
    on = FrozenSubject(trained(TinyBackbone()), parts[0], parts[1], torch.device("cpu"))
    with pytest.raises(UserError, match="a batch of these 3 has one; raise share or batch_size"):
        evaluate(on, cutmix=1.0, batch_size=2)


@pytest.mark.parametrize("word", ["layer_decay=0", "layer_decay=1.1", "drop_path=1", "ema_decay=1", "mixup=-1"])
def test_impossible_values_are_one_line(word):
    with pytest.raises(ConfigError) as caught:
        parse_options(FinetuneOptions, [word], "finetune")
    assert str(caught.value).startswith(f"command line: {word.partition('=')[0]}: should be ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["mae", "deit"])
def test_the_papers_settings_train(protocol):
    words = ["epochs=5", "ema_decay=0.9", "batch_size=16", "lr=0.001", "precision=fp32", "workers=0"]
    document = overrides_as_data([f"protocol={protocol}", *words])
    evaluator = choose_evaluators("finetune", document)["finetune"].build().evaluator
    result = evaluator.evaluate(SealedSubject(subject(vit(), 16), "finetune", seed=0, chooses=True))
    assert result.protocol["optimizer"]["name"] == "adamw"
    operations = [each["name"] for each in result.protocol["train_view"]["operations"]]
    assert operations == ["crop", "flip", "randaugment", "random_erasing"]
    assert all(row["loss"] > 0 for row in result.details["curve"])
