"""ResNet-18, -34 and -50 without their classifier (He, Zhang, Ren, Sun, *Deep Residual Learning for Image
Recognition*, CVPR 2016, arXiv:1512.03385): torchvision's networks, with a stem for small images and any width."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import resnet

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.options import Options

#: Smallest image side for each stem: the side by which the network divides, so that its last map has one pixel.
MINIMUM_SIZE = {"standard": 32, "small": 8}
TORCHVISION_WIDTH = 64


class ResNetOptions(Options):
    """Options of a ResNet."""

    stem: Literal["standard", "small"] = "standard"
    """`small`: a 3×3 convolution with stride 1 and no max-pool, for images up to 64 pixels."""
    width: int = Field(default=TORCHVISION_WIDTH, ge=1)
    """Channels of the first stage; the others have 2, 4 and 8 times as many."""
    zero_init_residual: bool = True
    """Each residual branch starts as zero: its last norm's weight is 0 at first."""


class _Network(resnet.ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet with another width and stem; its parameters keep torchvision's names."""

    def __init__(self, block: Any, layers: tuple[int, ...], options: ResNetOptions, channels: int) -> None:
        self._width = options.width  # before the stages are made
        super().__init__(block, list(layers), num_classes=1, zero_init_residual=options.zero_init_residual)
        self.fc = nn.Identity()
        if options.stem == "small":
            self.conv1 = nn.Conv2d(channels, options.width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, options.width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(options.width)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == TORCHVISION_WIDTH:
            self.inplanes = self._width  # what the stem gives the first stage
        stage: nn.Sequential = super()._make_layer(
            block, planes // TORCHVISION_WIDTH * self._width, blocks, stride, dilate
        )
        return stage


class _ResNet(Backbone):
    """What the ResNets share; `network` is the torchvision model."""

    Options: ClassVar[type[Options]] = ResNetOptions
    name: ClassVar[str]
    block: ClassVar[type[resnet.BasicBlock] | type[resnet.Bottleneck]]
    layers: ClassVar[tuple[int, ...]]

    def __init__(self, options: ResNetOptions, channels: int = 3) -> None:
        super().__init__()
        self.options = options
        self.network = _Network(self.block, self.layers, options, channels)
        self.spec = BackboneSpec(self.network.inplanes, channels, minimum_size=MINIMUM_SIZE[options.stem])

    @classmethod
    def build(cls, options: ResNetOptions, channels: int, image_size: int) -> _ResNet:
        least = MINIMUM_SIZE[options.stem]
        if image_size < least:
            stem = "; `stem: small` takes 8 pixels and more" if options.stem == "standard" else ""
            raise UserError(
                f"backbone: {cls.name} with the {options.stem} stem takes views of at least {least} pixels, "
                f"not {image_size}: set a larger views.size{stem}"
            )
        return cls(options, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Returns pooled features (N, 8·width·expansion) of images (N, C, H, W).

        Raises:
            UserError: if a mask is given.
        """
        if mask is not None:
            raise UserError(f"backbone: {self.name} has no tokens to mask: use a backbone with tokens for masked views")
        return Features(pooled=self.network(x))

    def export_state(self) -> tuple[dict[str, Tensor], str]:
        """Returns the weights under torchvision's names; no lines for a width that torchvision has no class for."""
        state = dict(self.network.state_dict())
        if self.options.width != TORCHVISION_WIDTH:
            return state, ""
        lines = ["import torch", "import torchvision", f"model = torchvision.models.{self.name}()"]
        channels = self.spec.channels
        if self.options.stem == "small":
            lines += [
                f"model.conv1 = torch.nn.Conv2d({channels}, 64, kernel_size=3, stride=1, padding=1, bias=False)",
                "model.maxpool = torch.nn.Identity()",
            ]
        elif channels != 3:
            lines.append(
                f"model.conv1 = torch.nn.Conv2d({channels}, 64, kernel_size=7, stride=2, padding=3, bias=False)"
            )
        lines += ["model.fc = torch.nn.Identity()", "model.load_state_dict(state, strict=True)"]
        return state, "\n".join(lines) + "\n"

    def import_state(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state, strict=True)


class ResNet18(_ResNet):
    """ResNet-18: 512 features at width 64."""

    name = "resnet18"
    block = resnet.BasicBlock
    layers = (2, 2, 2, 2)


class ResNet34(_ResNet):
    """ResNet-34: 512 features at width 64."""

    name = "resnet34"
    block = resnet.BasicBlock
    layers = (3, 4, 6, 3)


class ResNet50(_ResNet):
    """ResNet-50: 2048 features at width 64."""

    name = "resnet50"
    block = resnet.Bottleneck
    layers = (3, 4, 6, 3)
