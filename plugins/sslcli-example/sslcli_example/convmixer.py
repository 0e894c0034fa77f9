"""ConvMixer, a small convolutional network on patches (Trockman & Kolter, *Patches Are All You Need?*, 2201.09792)."""

from __future__ import annotations

from pydantic import Field, field_validator
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.options import Options
from sslcli.modules.masks import refuse_layers, refuse_masks


class ConvMixerOptions(Options):
    """Options of a ConvMixer."""

    dim: int = Field(default=256, ge=1)
    """Channels of every layer and dimension of the features."""
    depth: int = Field(default=8, ge=1)
    """Number of blocks."""
    kernel: int = Field(default=5, ge=1)
    """Side of the depthwise convolutions' kernels, in patches; odd."""
    patch: int = Field(default=2, ge=1)
    """Side of a patch in pixels."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a block keeps the size")
        return value


class _Block(nn.Module):
    """Mixes positions (depthwise, with a residual), then channels (1×1)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.places = nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(dim))
        self.channels = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.channels(x + self.places(x))
        return mixed


class ConvMixer(Backbone):
    """Patch embedding, blocks of constant size, and the mean over all positions."""

    Options = ConvMixerOptions

    def __init__(self, options: ConvMixerOptions, channels: int) -> None:
        super().__init__()
        self.spec = BackboneSpec(options.dim, channels, minimum_size=options.patch, size_multiple=options.patch)
        patches = nn.Conv2d(channels, options.dim, options.patch, stride=options.patch)
        self.stem = nn.Sequential(patches, nn.GELU(), nn.BatchNorm2d(options.dim))
        self.blocks = nn.Sequential(*[_Block(options.dim, options.kernel) for _ in range(options.depth)])

    @classmethod
    def build(cls, options: ConvMixerOptions, channels: int, image_size: int) -> ConvMixer:
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
        """Returns pooled features (N, dim) of images (N, C, H, W); UserError for a mask, a subset or more layers."""
        refuse_masks("convmixer", mask, mask_token, keep)
        refuse_layers("convmixer", layers)
        return Features(self.blocks(self.stem(x)).mean(dim=(2, 3)))
