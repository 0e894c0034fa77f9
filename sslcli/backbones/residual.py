"""The network of every ResNet: torchvision's blocks and parameter names, with a stem for small images and any width.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, https://arxiv.org/abs/1512.03385. It is written
here since importing torchvision takes longer than the first steps of a small network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

#: Arguments of the first convolution for each stem.
STEMS: dict[str, dict[str, Any]] = {
    "standard": {"kernel_size": 7, "stride": 2, "padding": 3},
    "small": {"kernel_size": 3, "stride": 1, "padding": 1},
}
TORCHVISION_WIDTH = 64

#: Makes the norm for a number of channels.
NormLayer = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; `inputs` and `planes` are channels, and `downsample` the shortcut where the shape changes.

    `groups` and `base_width` are those of a bottleneck.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, groups: int, base_width: int,
        norm: NormLayer,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> Any:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, expansion·planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """A 3×3 convolution between two of 1×1; as in torchvision, the 3×3 one has the stride."""

    expansion: ClassVar[int] = 4

    def __init__(
        self, inputs: int, planes: int, stride: int, downsample: nn.Module | None, groups: int, base_width: int,
        norm: NormLayer,
    ) -> None:  # fmt: skip
        super().__init__()
        width, outputs = int(planes * base_width / TORCHVISION_WIDTH) * groups, planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> Any:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, expansion·planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class ResidualNetwork(nn.Module):
    """A stem and four stages of blocks, without a classifier.

    Args:
        block: of every stage.
        layers: how many blocks each stage has.
        stem: a key of `STEMS`.
        width: channels of the first stage.
        channels: of the images.
        zero_init_residual: initialize the weight of each branch's last norm to 0.
        norm: of every layer.
        groups: of the 3×3 convolutions of bottlenecks (ResNeXt).
        width_per_group: their channels per group, at 64 planes (ResNeXt, wide ResNets).
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, ...],
        *,
        stem: str,
        width: int,
        channels: int,
        zero_init_residual: bool,
        norm: NormLayer = nn.BatchNorm2d,
        groups: int = 1,
        width_per_group: int = TORCHVISION_WIDTH,
    ) -> None:
        super().__init__()
        # Draws are those of torchvision's constructor and then of another first convolution, so that a seed gives the
        # weights that it always gave.
        self.conv1 = nn.Conv2d(3, TORCHVISION_WIDTH, **STEMS["standard"], bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        #: Channels of the last map.
        self.inplanes = width
        for number, blocks in enumerate(layers):
            planes, made = width * 2**number, []
            for index in range(blocks):
                stride, shortcut = 2 if number and not index else 1, None
                if stride > 1 or self.inplanes != planes * block.expansion:
                    projection = nn.Conv2d(self.inplanes, planes * block.expansion, 1, stride, bias=False)
                    shortcut = nn.Sequential(projection, norm(planes * block.expansion))
                made.append(block(self.inplanes, planes, stride, shortcut, groups, width_per_group, norm))
                self.inplanes = planes * block.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*made))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        nn.Linear(8 * TORCHVISION_WIDTH * block.expansion, 1)  # a classifier's draws
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialize(module)
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)
        self.conv1 = nn.Conv2d(channels, width, **STEMS[stem], bias=False)
        _initialize(self.conv1)

    def stages(self) -> tuple[nn.Module, ...]:
        """Returns the four stages."""
        return tuple(self.get_submodule(f"layer{number}") for number in (1, 2, 3, 4))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Returns the output of each of the four stages for images (N, C, H, W)."""
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(x)))), []
        for stage in self.stages():
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, last: Tensor) -> Tensor:
        """Returns the features (N, D) of the last stage's output."""
        features: Tensor = self.avgpool(last).flatten(1)
        return features


def _initialize(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
