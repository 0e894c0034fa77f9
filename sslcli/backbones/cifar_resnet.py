"""The ResNets for small images: three stages of 3×3 convolutions and shortcuts without parameters.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, https://arxiv.org/abs/1512.03385, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneOptions, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.masks import refuse_layers, refuse_masks

from .family import features_of_maps, member

#: Two stages halve the image: the smallest side whose last map has one pixel.
MINIMUM_SIZE = 4


class CIFARResNetOptions(BackboneOptions):
    """Options of a CIFAR ResNet."""

    width: int = Field(default=16, ge=1)
    """Channels of the first stage; the others have 2 and 4 times as many."""
    zero_init_residual: bool = True
    """Initialize each residual branch to zero: the weight of its last norm starts at 0."""

    legacy: ClassVar[Mapping[str, Any]] = {"zero_init_residual": True}  # as of the other ResNets


class _Block(nn.Module):
    """x ↦ ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x)); both convolutions are 3×3."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, out_channels - channels
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A of the paper: every second pixel, and zeros for the channels that x doesn't have."""
        if self.stride == 1 and not self.added:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


class CIFARResNet(Backbone):
    """6n + 2 layers, where n is the number of `blocks` in a stage; the last layer, the classifier, is left out."""

    Options = CIFARResNetOptions
    name: ClassVar[str]
    blocks: ClassVar[int]

    def __init__(self, options: CIFARResNetOptions, channels: int = 3) -> None:
        super().__init__()
        width = options.width
        self.options = options
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, _Block) and options.zero_init_residual:
                nn.init.zeros_(part.bn2.weight)
        self.spec = BackboneSpec(4 * width, channels, minimum_size=MINIMUM_SIZE)

    def _stage(self, channels: int, out_channels: int, stride: int) -> nn.Sequential:
        first = _Block(channels, out_channels, stride)
        return nn.Sequential(first, *(_Block(out_channels, out_channels, 1) for _ in range(self.blocks - 1)))

    @classmethod
    def build(cls, options: CIFARResNetOptions, channels: int, image_size: int) -> CIFARResNet:
        if image_size < MINIMUM_SIZE:
            raise UserError(
                f"backbone: {cls.name} takes views of at least {MINIMUM_SIZE} pixels, not {image_size}: set views.size"
            )
        return cls(options, channels)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, 4·width) of images (N, C, H, W), and the pixels of the last map as tokens;
        `layers` are stages. UserError if a mask or a subset is given."""
        refuse_masks(self.name, mask, mask_token, keep)
        refuse_layers(self.name, layers, most=3)
        x, maps = F.relu(self.bn1(self.conv1(x))), []
        for stage in self.layer_modules():
            x = stage(x)
            maps.append(x)
        return features_of_maps(x.mean(dim=(2, 3)), maps[-layers:])

    def layer_modules(self) -> Sequence[nn.Module]:
        return self.layer1, self.layer2, self.layer3


CIFARResNet20, CIFARResNet56 = (
    member(
        CIFARResNet,
        f"CIFARResNet{layers}",
        f"The ResNet of {layers} layers for images of about 32 pixels: 64 features at width 16.",
        name=f"cifar_resnet{layers}",
        blocks=(layers - 2) // 6,
    )
    for layers in (20, 56)
)
