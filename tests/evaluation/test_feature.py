"""Which output is the feature: class tokens of the last layers, tokens, both; and how images of another size arrive."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision import transforms

from sslcli.contracts.backbone import Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.evaluation.extraction import extract_features
from sslcli.evaluation.feature import FeatureBackbone
from sslcli.evaluation.seal import SealedSubject
from sslcli.evaluation.subject import FrozenSubject
from sslcli.evaluators.finetune.evaluator import Finetune
from sslcli.evaluators.knn import KNN
from sslcli.evaluators.linear.evaluator import Linear
from sslcli.evaluators.logistic import LogisticRegression
from sslcli.evaluators.quality import Quality
from sslcli.plugins import load
from sslcli.testing.stand_ins import MemoryDataset, SmallBackbone, small_trained

CPU = torch.device("cpu")


class Pooled(SmallBackbone):
    """Without tokens."""

    def forward(self, x, mask=None):
        return Features(super().forward(x).pooled)


SIZE = 16


def vit(depth=3, **options):
    cls = load("backbones", "vit_tiny")
    torch.manual_seed(0)
    return cls.build(cls.Options.parse({"depth": depth, "patch_size": 8, "heads": 3, **options}), 3, SIZE).eval()


def subject(backbone, feature="pooled", **named):
    card = BackboneCard({"name": "b"}, 3, SIZE, 1, (0.5,) * 3, (0.25,) * 3, "dino", "memory", 1, 1.0, "0")
    parts = [MemoryDataset(split, 24, size=SIZE) for split in ("train", "test")]
    return FrozenSubject(Trained(backbone, card, None, ""), parts[0], parts[1], CPU, feature=feature, **named)


def outputs(backbone, images):
    """Every block's output behind the final norm, (N, 1 + L, D) each, by hooks."""
    found = []
    hooks = [block.register_forward_hook(lambda module, given, out: found.append(out)) for block in backbone.blocks]
    with torch.no_grad():
        backbone(images)
        for hook in hooks:
            hook.remove()
        return [backbone.norm(out) for out in found]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_vision_transformers_features_are_those_of_its_blocks(pool):
    network = vit(pool=pool)
    first, second, third = outputs(network, images := torch.randn(5, 3, SIZE, SIZE))
    expected = {
        "cls_last1": third[:, 0],
        "cls_last2": torch.cat([second[:, 0], third[:, 0]], dim=1),
        "cls_last3": torch.cat([first[:, 0], second[:, 0], third[:, 0]], dim=1),
        "cls_mean": torch.cat([third[:, 0], third[:, 1:].mean(dim=1)], dim=1),
        "tokens": third[:, 1:].mean(dim=1),
    }
    for feature, values in expected.items():
        it = FeatureBackbone(network, feature, SIZE).eval()
        with torch.no_grad():
            found = it(images, layers=2)
        torch.testing.assert_close(found.pooled, values, rtol=1e-5, atol=1e-5)
        assert it.spec.feature_dim == values.shape[1]
        assert len(found.layers) == 2
    assert network.spec.feature_dim == 192


def test_torchvisions_vision_transformer_has_them_too():
    cls = load("backbones", "torchvision/vit_b_16")
    network = cls.build(cls.Options.parse({}), 3, 32).eval()
    encoder, inside = network.network.encoder, []
    for block in encoder.layers[-2:]:
        block.register_forward_hook(lambda module, given, out: inside.append(encoder.ln(out)[:, 0]))
    with torch.no_grad():
        found = FeatureBackbone(network, "cls_last2", 32)(torch.randn(2, 3, 32, 32)).pooled
    torch.testing.assert_close(found, torch.cat(inside[-2:], dim=1))


@pytest.mark.parametrize(
    ("network", "feature", "said"),
    [
        (vit(), "cls_last4", "feature=cls_last4: backbone: vit_tiny has the outputs of 1 to 3 layers, not of 4"),
        (small_trained().backbone, "cls_last4", "feature=cls_last4: this network has no class token; use feature=tok"),
        (small_trained().backbone, "cls_mean", "feature=cls_mean: this network has no class token; use feature=tokens"),
        (Pooled(3, 16), "tokens", "feature=tokens: this network has no tokens; use feature=pooled"),
        (Pooled(3, 16), "cls_last1", "feature=cls_last1: this network has no class token; use feature=pooled"),
        (Pooled(3, 16), "a\n", "feature=a\\n: this network has no class token; use feature=pooled"),  # of a file
    ],
)
def test_a_network_without_the_feature_is_refused_in_one_line(network, feature, said):
    with pytest.raises(UserError) as caught:
        FeatureBackbone(network, feature, SIZE)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_the_protocol_says_which_feature_and_how_images_were_resized():
    it = subject(vit(), "cls_last2", interpolation="bicubic")
    said = it.describe()
    assert (said["feature"], said["feature_dim"], said["interpolation"]) == ("cls_last2", 384, "bicubic")
    assert said["feature_of"] == "class tokens of the last 2 layers, concatenated, each behind the final norm"
    said = subject(vit()).describe()
    assert (said["feature"], said["feature_of"], said["interpolation"]) == (
        "pooled", "what the network pools itself", "bilinear",
    )  # fmt: skip


def test_the_networks_digest_does_not_depend_on_the_feature_and_a_change_is_seen_through_it():
    pooled, other = subject(vit()), subject(vit(), "cls_last2")
    assert pooled.weights_sha256 == other.weights_sha256
    other.check_unchanged("it")
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    with pytest.raises(SslError, match="'it' has changed the backbone"):
        other.check_unchanged("it")


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (KNN, {"k": 5}),
        (Linear, {"epochs": 2}),
        (Linear, {"epochs": 2, "protocol": "augmented", "workers": 0, "lr": 0.1, "standardize": False}),
        (LogisticRegression, {"C": 1.0}),
        (Quality, {}),
        (Finetune, {"epochs": 1, "batch_size": 8}),
    ],
)
def test_every_evaluator_sees_the_feature_and_leaves_the_network_unchanged(cls, options):
    it = subject(vit(), "cls_last2")
    result = cls(cls.Options.parse(options)).evaluate(SealedSubject(it, "it", seed=0, chooses=cls.chooses))
    it.check_unchanged("it")
    assert result.protocol["feature"] == "cls_last2"
    if cls is not Finetune:
        assert it.features("eval").features.shape == (24, 384)


class Photographs(MemoryDataset):
    """One smooth image that is not square, and one of the views' size."""

    def __init__(self, size):
        super().__init__(count=2)
        pixels = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(1))
        smooth = torch.nn.functional.interpolate(pixels[None], (61, 87), mode="bicubic").clamp(0, 1)[0]
        self._images = [(smooth * 255).to(torch.uint8), torch.zeros(3, size, size, dtype=torch.uint8)]
        self.info = DataInfo("photographs", 3, None, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c", "d"))

    def images(self):
        return None


class Pixels(SmallBackbone):
    """Its features are the pixels."""

    def forward(self, x, *arguments, **named):
        features = super().forward(x)
        return type(features)(x.flatten(1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_arrive_as_from_torchvisions_resize_and_center_crop(interpolation):
    data = Photographs(28)
    it = subject(Pixels(3, 16), interpolation=interpolation)
    it.image_size = 28
    found = extract_features(it.backbone, data, it).features[0].view(3, 28, 28)
    pipeline = transforms.Compose([
        transforms.Resize(32, interpolation=transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(28),
        transforms.PILToTensor(),
    ])  # fmt: skip
    expected = pipeline(Image.fromarray(data.image(0).permute(1, 2, 0).numpy()))
    levels = (found * 0.25 + 0.5) * 255
    assert float((levels - expected).abs().max()) <= 1.01
    other = {"bilinear": "bicubic", "bicubic": "bilinear"}[interpolation]
    it.interpolation = other
    assert not torch.equal(extract_features(it.backbone, data, it).features[0].view(3, 28, 28), found)
