"""Backbones that break one rule each, as in `broken_plugins.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from broken_plugins import broken
from torch import Tensor, nn

from sslcli.backbones.vit import ViT, ViTTiny
from sslcli.contracts.backbone import BackboneProvider, BackboneSpec, Features
from sslcli.testing.stand_ins import SmallBackbone


def with_spec(self: Any, channels: int, dim: int) -> None:
    SmallBackbone.__init__(self, channels, dim)
    self.spec = BackboneSpec(dim + 1, channels)


def other_features(change: Any) -> Any:
    return lambda self, x, mask=None, **others: Features(change(SmallBackbone.forward(self, x, mask, **others).pooled))


#: Four patches.
VIT = {"depth": 2, "patch_size": 16}
ALL = torch.arange(4).expand(4, -1)


def changed_features(change: Any) -> Any:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None, **asked: Any) -> Features:
        found = ViT.forward(self, x, mask, **asked)
        change(found, asked)
        return found

    return forward


def changed_arguments(change: Any) -> Any:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None, **asked: Any) -> Features:
        given = {"mask": mask, **asked} if mask is not None else asked
        return ViT.forward(self, x, **change(given))

    return forward


def own_seed(cls: Any, options: Any, channels: int, image_size: int) -> SmallBackbone:
    torch.manual_seed(0)
    return cls(channels, 16)


BACKBONES = [
    broken("WrongDim", SmallBackbone, r"\(2, 16\), not torch.float32 \(2, 17\)", __init__=with_spec),
    broken("AlwaysDrops", SmallBackbone, r"two passes over the same images in eval\(\) differ",
           forward=other_features(lambda pooled: F.dropout(pooled, training=True))),
    broken("BatchNormInEval", SmallBackbone, "depend on the others in its batch",
           forward=other_features(lambda pooled: pooled - pooled.mean(dim=0))),
    broken("FewerLayers", ViTTiny, "layer_modules returns 1 layers, fewer than forward takes", VIT,
           layer_modules=lambda self: tuple(self.blocks)[:1]),
    broken("OthersLayers", ViTTiny, "layer_modules returns modules that are not its own", VIT,
           layer_modules=lambda self: (nn.Linear(1, 1), nn.Linear(1, 1))),
    broken("TakesMask", SmallBackbone, "must reject a mask",
           forward=lambda self, x, mask=None, mask_token=None, **others: SmallBackbone.forward(self, x, **others)),
    broken("TakesKeep", SmallBackbone, "must reject `keep`",
           forward=lambda self, x, mask=None, mask_token=None, keep=None, layers=1: SmallBackbone.forward(
               self, x, mask, mask_token=mask_token, layers=layers)),
    broken("TakesLayers", SmallBackbone, "must reject layers=2",
           forward=lambda self, x, mask=None, mask_token=None, keep=None, layers=1: SmallBackbone.forward(
               self, x, mask, mask_token=mask_token, keep=keep)),
    broken("OneLayer", ViTTiny, "does not return the last two", VIT, forward=changed_features(
        lambda found, asked: setattr(found, "layers", found.layers[-1:]))),
    broken("FirstLayers", ViTTiny, "the last layer is not its tokens", VIT, forward=changed_features(
        lambda found, asked: setattr(found, "layers", tuple((cls, 2 * x) for cls, x in found.layers)))),
    broken("NoToken", ViTTiny, "no gradient reaches the mask token", VIT, forward=changed_arguments(
        lambda asked: {**asked, "mask_token": asked["mask_token"].detach()} if "mask_token" in asked else asked)),
    broken("IgnoresMask", ViTTiny, "a mask changes nothing", VIT, forward=changed_arguments(
        lambda asked: {n: x for n, x in asked.items() if n not in ("mask", "mask_token")})),
    broken("Sorts", ViTTiny, "tokens do not come in the order of `keep`", VIT, forward=changed_arguments(
        lambda asked: {**asked, "keep": asked["keep"].sort(1).values} if "keep" in asked else asked)),
    broken("KeepsAll", ViTTiny, "the shape of tokens with `keep`", VIT, forward=changed_arguments(
        lambda asked: {**asked, "keep": ALL} if asked.get("keep", ALL).shape[1] < 4 else asked)),
    broken("OwnSeed", SmallBackbone, "the same weights whatever the seed", build=classmethod(own_seed)),
    broken("ImportsNothing", SmallBackbone, "import_state of what export_state returned gives other",
           import_state=lambda self, state: None),
    broken("ImportsAnything", SmallBackbone, "takes a state without 'layers.0.weight'",
           import_state=lambda self, state: self.load_state_dict(state, strict=False)),
    broken("NoPython", SmallBackbone, "the lines are not Python: SyntaxError",
           export_state=lambda self: (dict(self.state_dict()), "model = (")),
    broken("ThreeChannels", SmallBackbone, "spec.channels is 3, not 1",
           build=classmethod(lambda cls, options, channels, image_size: cls(3, 16))),
    broken("OtherSpec", SmallBackbone, r"describe\(\) is BackboneSpec\(feature_dim=7.* not BackboneSpec",
           describe=classmethod(lambda cls, options, channels, image_size: BackboneSpec(7, channels))),
    broken("DrawingSpec", SmallBackbone, "describe draws from torch's generator",
           describe=classmethod(lambda cls, *arguments: cls.build(*arguments).spec)),
]  # fmt: skip


class AnyName(BackboneProvider):
    """Has a backbone for every name."""

    @classmethod
    def names(cls) -> list[str]:
        return ["small"]

    @classmethod
    def get(cls, name: str) -> type[SmallBackbone]:
        return SmallBackbone


PROVIDERS = [broken("EveryName", AnyName, "get of a name that it does not list must raise KeyError")]
