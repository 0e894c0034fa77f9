"""ResNets without their classifier: torchvision's networks, with a stem for small images and any width.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, https://arxiv.org/abs/1512.03385.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneOptions, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.masks import refuse_layers, refuse_masks

from .family import SMALL, features_of_maps, given_shape, member
from .published import PublishedOptions, published_state
from .residual import STEMS, TORCHVISION_WIDTH, BasicBlock, Bottleneck, NormLayer, ResidualNetwork

#: Smallest image side for each stem: the factor by which the network downsamples, so that its last map has one pixel.
MINIMUM_SIZE = {"standard": 32, "small": 8}
#: The block of each depth, and how many of them each stage has (table 1 of the paper).
DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResidualOptions(BackboneOptions):
    """Options of every ResNet, with any norm."""

    stem: Literal["auto", "standard", "small"] = "auto"
    """`standard`: a 7×7 convolution with stride 2 and a max-pool; `small`: a 3×3 convolution with stride 1, for small
    images; auto: as the given weights have it, else `small` up to 64 pixels."""
    width: int = Field(default=TORCHVISION_WIDTH, ge=1)
    """Channels of the first stage; the others have 2, 4 and 8 times as many."""
    zero_init_residual: bool = True
    """Initialize each residual branch to zero: the weight of its last norm starts at 0."""

    #: Some methods have another default for the former since then, and the latter was no default.
    legacy: ClassVar[Mapping[str, Any]] = {"zero_init_residual": True, "stem": "standard"}


class ResNetOptions(ResidualOptions, PublishedOptions):
    """Options of a ResNet with batch norm."""

    @model_validator(mode="after")
    def _pretrained_is_standard(self) -> Self:
        if self.pretrained and (self.stem == "small" or self.width != TORCHVISION_WIDTH):
            raise ValueError(f"published weights exist for the standard stem and width {TORCHVISION_WIDTH} only")
        return self


class ResidualBackbone(Backbone):
    """Base class of all ResNets; `network` has the parameter names of torchvision's."""

    Options = ResidualOptions
    name: ClassVar[str]
    block: ClassVar[type[BasicBlock | Bottleneck]]
    layers: ClassVar[tuple[int, ...]]
    #: torchvision's `groups` and `width_per_group`, for ResNeXt and wide ResNets.
    groups: ClassVar[dict[str, int]] = {}
    #: The part of the docstring that follows the depth.
    about: ClassVar[str] = ""

    @classmethod
    def of_depth(cls, depth: int) -> type[Self]:
        """Returns the class of one of `DEPTHS`, named `ResNet18` and the like."""
        block, layers = DEPTHS[depth]
        text = f"ResNet-{depth}{cls.about}: {512 * block.expansion} features at width 64."
        return member(cls, f"{cls.__name__}{depth}", text, name=f"{cls.name}{depth}", block=block, layers=layers)

    def __init__(self, options: Any, channels: int = 3) -> None:
        super().__init__()
        self.options = options = self.fit_options(options, SMALL + 1)
        self.network = self.make_network(options, channels)
        self.spec = self.spec_of(options, channels)

    def norm(self, options: Any) -> NormLayer:
        """Returns what makes the network's norms."""
        return nn.BatchNorm2d

    def make_network(self, options: Any, channels: int) -> ResidualNetwork:
        """Builds the network."""
        return ResidualNetwork(
            self.block, self.layers, stem=options.stem, width=options.width, channels=channels,
            zero_init_residual=options.zero_init_residual, norm=self.norm(options), **self.groups,
        )  # fmt: skip

    @classmethod
    def fit_options(cls, options: Any, image_size: int, weights: Mapping[str, Tensor] | None = None) -> Any:
        """Returns the options with the stem that `auto` comes to."""
        if options.stem != "auto":
            return options
        first, small = given_shape(options, weights, "conv1.weight"), image_size <= SMALL
        if first is not None:
            small = first[-1] == STEMS["small"]["kernel_size"]
        elif getattr(options, "pretrained", False):
            small = False
        return options.with_defaults(stem="small" if small else "standard")

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> ResidualBackbone:
        options = cls.fit_options(options, image_size)
        cls.describe(options, channels, image_size)
        return cls(options, channels)

    @classmethod
    def describe(cls, options: Any, channels: int, image_size: int) -> BackboneSpec:
        options = cls.fit_options(options, image_size)
        least = MINIMUM_SIZE[options.stem]
        if image_size < least:
            stem = "; `stem: small` takes 8 pixels and more" if options.stem == "standard" else ""
            raise UserError(
                f"backbone: {cls.name} with the {options.stem} stem takes views of at least {least} pixels, "
                f"not {image_size}: set a larger views.size{stem}"
            )
        step = TORCHVISION_WIDTH // math.gcd(TORCHVISION_WIDTH, cls.groups.get("width_per_group", TORCHVISION_WIDTH))
        if options.width % step:
            raise UserError(f"backbone.width: {cls.name} takes multiples of {step}, not {options.width}")
        return cls.spec_of(options, channels)

    @classmethod
    def spec_of(cls, options: Any, channels: int) -> BackboneSpec:
        """Returns the spec, which needs no network."""
        features = options.width * 2 ** (len(cls.layers) - 1) * cls.block.expansion
        return BackboneSpec(features, channels, minimum_size=MINIMUM_SIZE[options.stem])

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, 8·width·expansion) of images (N, C, H, W), and the pixels of the last map as
        tokens; `layers` are stages. UserError if a mask or a subset is given."""
        refuse_masks(self.name, mask, mask_token, keep)
        refuse_layers(self.name, layers, most=len(self.layers))
        maps = self.network.maps(x)
        return features_of_maps(self.network.pooled(maps[-1]), maps[-layers:])

    def layer_modules(self) -> Sequence[nn.Module]:
        return self.network.stages()

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under torchvision's names, and no lines: torchvision has no such model."""
        return dict(self.network.state_dict()), ""

    def import_state(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state, strict=True)


class ResNet(ResidualBackbone):
    """torchvision's ResNet, with batch norm."""

    Options = ResNetOptions
    name = "resnet"

    def published_state(self) -> dict[str, Tensor] | None:
        return published_state(self.name) if self.options.pretrained else None

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under torchvision's names; no lines for a width that torchvision has no class for."""
        state = dict(self.network.state_dict())
        if self.options.width != TORCHVISION_WIDTH:
            return state, ""
        lines = ["import torch", "import torchvision", f"model = torchvision.models.{self.name}()"]
        small, channels = self.options.stem == "small", self.spec.channels
        if small or channels != 3:
            stem = ", ".join(f"{key}={value}" for key, value in STEMS[self.options.stem].items())
            lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, {TORCHVISION_WIDTH}, {stem}, bias=False)")
        if small:
            lines.append("model.maxpool = torch.nn.Identity()")
        lines += ["model.fc = torch.nn.Identity()", "model.load_state_dict(state, strict=True)"]
        return state, "\n".join(lines) + "\n"


ResNet18, ResNet34, ResNet50, ResNet101, ResNet152 = (ResNet.of_depth(depth) for depth in DEPTHS)


def _variant(base: type[ResNet], name: str, groups: int, width_per_group: int) -> type[ResNet]:
    """A ResNet whose 3×3 convolutions are grouped or wider (ResNeXt, https://arxiv.org/abs/1611.05431; wide ResNets,
    https://arxiv.org/abs/1605.07146)."""
    sizes = {"groups": groups, "width_per_group": width_per_group}
    return member(base, name, f"torchvision's {name}.", name=name, groups=sizes)


#: All ResNets of torchvision by their names there.
RESNETS: dict[str, type[ResNet]] = {
    each.name: each
    for each in (
        ResNet18, ResNet34, ResNet50, ResNet101, ResNet152,
        _variant(ResNet50, "resnext50_32x4d", 32, 4),
        _variant(ResNet101, "resnext101_32x8d", 32, 8),
        _variant(ResNet101, "resnext101_64x4d", 64, 4),
        _variant(ResNet50, "wide_resnet50_2", 1, 128),
        _variant(ResNet101, "wide_resnet101_2", 1, 128),
    )
}  # fmt: skip
