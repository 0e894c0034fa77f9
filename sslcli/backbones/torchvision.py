"""All classification models of torchvision without their classifiers, as `torchvision/NAME`.

Where to cut, the size of the features and the first convolution are read from the model itself, so models of later
versions of torchvision work too.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.densenet import DenseNet
from torchvision.models.maxvit import MaxVit
from torchvision.models.mnasnet import MNASNet
from torchvision.models.vision_transformer import interpolate_embeddings

from sslcli.contracts.backbone import Backbone, BackboneProvider, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.gradient_checkpointing import CheckpointedBlocks, GradientCheckpointingOptions, last_outputs
from sslcli.modules.masks import check_request, refuse_layers, refuse_masks, replace_masked, take

from .classifier import cut_torchvision
from .family import features_of_maps, member
from .published import PublishedOptions, published_state
from .resnet import RESNETS

#: The smallest image side: the factor by which most networks downsample; two lose more pixels.
MINIMUM_SIZE, LARGER_MINIMUM = 32, {"alexnet": 63, "inception_v3": 75}
#: Families built for one image size: the constructor's argument for it.
ONE_SIZE = {"vit": "image_size", "maxvit": "input_size"}
MAXVIT_MULTIPLE = 224
#: Models with an auxiliary classifier inside; the values are arguments that leave it out.
AUXILIARY: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class TorchvisionViTOptions(PublishedOptions, GradientCheckpointingOptions):
    """Options of torchvision's vision transformers."""


class _MNASNet(MNASNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's class refuses a state without a version number, which files of plain tensors don't carry."""

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Mapping[str, Any], *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, {"version": self._version, **metadata}, *rest)


class _LastMap:
    """A hook that keeps the map (N, E, H, W) that a network pools, until it is taken."""

    def __init__(self, network: Any) -> None:
        #: The module that pools is `avgpool` or a classifier that begins with it; others pool the output of a module.
        self.is_input = hasattr(network, "avgpool") or isinstance(network, MaxVit)
        self.relu = isinstance(network, DenseNet)
        self.found: Tensor | None = None
        names = ("avgpool", *(("classifier",) if self.is_input else ("features", "layers", "conv5")))
        pooling = next((getattr(network, name) for name in names if hasattr(network, name)), None)
        if pooling is not None:
            pooling.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found = inputs[0] if self.is_input else output
        self.found = found.relu() if self.relu else found

    def take(self) -> list[Tensor]:
        found, self.found = self.found, None
        return [] if found is None else [found]


class TorchvisionBackbone(Backbone):
    """A classification model of torchvision without its classifier; `network` is the model."""

    Options = PublishedOptions
    name: ClassVar[str]

    def __init__(self, options: Any, channels: int, image_size: int) -> None:
        super().__init__()
        self.options = options
        arguments = self._arguments(image_size)
        self.network: Any = models.get_model(self.name, weights=None, **arguments)
        # The exported lines skip an initialization that takes seconds.
        exported = {**arguments, **({"init_weights": False} if self.name in AUXILIARY else {})}
        shown = ", ".join(f"{key}={value!r}" for key, value in exported.items())
        self._lines = ["import torch", "import torchvision", f"model = torchvision.models.{self.name}({shown})"]
        cut = cut_torchvision(self.network)
        if cut is None:
            raise UserError(f"backbone: torchvision/{self.name} has no classifier to remove")
        dim, lines = cut
        self._lines += lines
        if channels != 3:
            self._replace_first_convolution(channels)
        if isinstance(options, TorchvisionViTOptions) and options.gradient_checkpointing:
            blocks = OrderedDict(self.network.encoder.layers.named_children())
            self.network.encoder.layers = CheckpointedBlocks(blocks)
        self._side = image_size if self._family() in ONE_SIZE else None
        least = self._side or LARGER_MINIMUM.get(self.name, MINIMUM_SIZE)
        is_vit = self._family() == "vit"
        self._map = None if is_vit else _LastMap(self.network)
        self.spec = BackboneSpec(
            dim, channels, minimum_size=least, size_multiple=self._multiple(), maskable=is_vit,
            patch_size=self._multiple() if is_vit else None,
        )  # fmt: skip
        if isinstance(self.network, MNASNet):
            self.network.__class__ = _MNASNet
            self._lines += [
                "from collections import OrderedDict",
                "state = OrderedDict(state)",
                "state._metadata = model.state_dict()._metadata  # MNASNet asks for its version",
            ]

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> TorchvisionBackbone:
        least, multiple = LARGER_MINIMUM.get(cls.name, MINIMUM_SIZE), cls._multiple()
        if image_size < least or image_size % multiple:
            wanted = f"in multiples of {multiple}" if multiple > 1 else f"of at least {least} pixels"
            raise UserError(f"backbone: torchvision/{cls.name} takes views {wanted}, not {image_size}: set views.size")
        return cls(options, channels, image_size)

    @classmethod
    def _family(cls) -> str:
        return cls.name.partition("_")[0]

    @classmethod
    def _multiple(cls) -> int:
        if cls._family() == "vit":
            return int(cls.name.rpartition("_")[2])  # vit_b_16
        return MAXVIT_MULTIPLE if cls._family() == "maxvit" else 1

    def _arguments(self, image_size: int) -> dict[str, Any]:
        """The arguments of torchvision's function."""
        arguments = dict(AUXILIARY.get(self.name, {}))
        if self._family() in ONE_SIZE:
            sides = image_size if self._family() == "vit" else (image_size, image_size)
            arguments[ONE_SIZE[self._family()]] = sides
        if self.name in AUXILIARY and self.options.pretrained:
            arguments["transform_input"] = True  # the published weights expect another normalization than ImageNet's
        return arguments

    def _replace_first_convolution(self, channels: int) -> None:
        path, old = next((n, m) for n, m in self.network.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, name = path.rpartition(".")
        arguments: dict[str, Any] = {
            "kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding, "bias": old.bias is not None,
        }  # fmt: skip
        setattr(self.network.get_submodule(parent), name, nn.Conv2d(channels, old.out_channels, **arguments))
        shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
        self._lines += [
            f"first = torch.nn.Conv2d({channels}, {old.out_channels}, {shown})",
            f"setattr(model.get_submodule({parent!r}), {name!r}, first)",
        ]

    @property
    def patch_projection(self) -> nn.Module | None:
        """The patch embedding of a ViT, by which MoCo v3 recognizes one; None for other networks."""
        return self.network.conv_proj if self._family() == "vit" else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, D) of images (N, C, H, W), and as tokens the patches of a ViT, the pixels of the
        last map of others.

        Raises:
            UserError: if a ViT or MaxViT is given images of a size it was not built for; if a mask, a subset or more
                than the last layer is asked of another network than a ViT.
        """
        if self._side is not None and tuple(x.shape[-2:]) != (self._side, self._side):
            raise UserError(
                f"backbone: torchvision/{self.name} was built for images of {self._side} pixels, not "
                f"{x.shape[-2]}×{x.shape[-1]}: use vit_small or a similar model, which accepts any size"
            )
        name = f"torchvision/{self.name}"
        if self._map is None:
            return self._vit(x, mask, mask_token, keep, layers)
        refuse_masks(name, mask, mask_token, keep)
        refuse_layers(name, layers)
        pooled = self.network(x)
        maps = self._map.take()
        return features_of_maps(pooled, maps) if maps else Features(pooled)

    def _vit(
        self, x: Tensor, mask: Tensor | None, mask_token: Tensor | None, keep: Tensor | None, layers: int
    ) -> Features:
        """`forward` for a vision transformer, in torchvision's steps."""
        name, network, encoder = f"torchvision/{self.name}", self.network, self.network.encoder
        refuse_layers(name, layers, most=len(encoder.layers))
        tokens = network._process_input(x)  # N×L×D
        check_request(name, tokens.shape[1], mask, mask_token, keep)
        if mask is not None and mask_token is not None:
            tokens = replace_masked(tokens, mask, mask_token)
        first, positions = network.class_token.expand(len(x), -1, -1), encoder.pos_embedding
        if keep is None:
            tokens = torch.cat([first, tokens], dim=1) + positions
        else:
            tokens = torch.cat([first + positions[:, :1], take(tokens + positions[:, 1:], keep)], dim=1)
        last = [encoder.ln(out) for out in last_outputs(encoder.layers, encoder.dropout(tokens), layers)]
        side = x.shape[-1] // self._multiple()
        grid = (side, side) if keep is None else None
        parts = tuple((out[:, 0], out[:, 1:]) for out in last)
        return Features(network.heads(parts[-1][0]), parts[-1][1], grid, parts)

    def layer_modules(self) -> Sequence[nn.Module]:
        """Returns a ViT's blocks; nothing for other networks."""
        return tuple(self.network.encoder.layers) if self._family() == "vit" else ()

    def published_state(self) -> dict[str, Tensor] | None:
        """Returns torchvision's weights; the positions of a ViT are interpolated to its image size."""
        if not self.options.pretrained:
            return None
        state = published_state(self.name)
        if self._family() == "vit":
            state = dict(interpolate_embeddings(self._side, self._multiple(), dict(state)))
        return state

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under torchvision's names, and lines that build torchvision's model around them."""
        return dict(self.network.state_dict()), "\n".join([*self._lines, "model.load_state_dict(state, strict=True)\n"])

    def import_state(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state, strict=True)


class TorchvisionModels(BackboneProvider):
    """Every classification model of torchvision without its classifier; the ResNets with a small stem and any width."""

    @classmethod
    def names(cls) -> list[str]:
        """Lists torchvision's names, sorted."""
        return sorted(models.list_models(module=models))

    @classmethod
    def get(cls, name: str) -> type[Backbone]:
        """Returns the backbone class, always the same for a name; raises KeyError for an unknown name."""
        return RESNETS[name] if name in RESNETS else _backbone(name)


@functools.cache
def _backbone(name: str) -> type[TorchvisionBackbone]:
    if name not in TorchvisionModels.names():
        raise KeyError(name)
    about = f"torchvision's {name} without its classifier."
    options = TorchvisionViTOptions if name.startswith("vit_") else PublishedOptions
    return member(TorchvisionBackbone, name, about, name=name, Options=options)
