"""Vision transformers for any image and patch size, with timm's parameter names.

Dosovitskiy et al., *An Image is Worth 16x16 Words*, https://arxiv.org/abs/2010.11929; sizes tiny and small, Touvron et
al. (DeiT), https://arxiv.org/abs/2012.12877; positions for other image sizes, Caron et al. (DINO),
https://arxiv.org/abs/2104.14294; fixed sin-cos positions, Chen et al. (MoCo v3), https://arxiv.org/abs/2104.02057.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import UserError
from sslcli.modules.drop_path import grow_drop_path
from sslcli.modules.gradient_checkpointing import CheckpointedBlocks, GradientCheckpointingOptions, last_outputs
from sslcli.modules.maps import resize_map
from sslcli.modules.masks import check_request, refuse_layers, replace_masked, take
from sslcli.modules.transformer import (
    EPS,
    Initialization,
    TransformerBlock,
    initialize_transformer,
    sincos_positions,
    xavier_uniform,
)

from .family import SMALL, given_shape, member


class ViTOptions(GradientCheckpointingOptions):
    """Options of a vision transformer."""

    patch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Side of a patch in pixels; images must be a multiple of it. auto: as the given weights have it, else 4 up to 64
    pixels, 8 up to 128, and 16 above."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; null: 3 for tiny, 6 for small, 12 for base (MoCo v3 uses 12 for small)."""
    depth: int = Field(default=12, ge=1, le=1000)
    """Number of blocks."""
    positions: Literal["learned", "sincos"] = "learned"
    """Positional embeddings: parameters, or MoCo v3's fixed sines and cosines."""
    init: Initialization = "normal"
    """Initial weights: `normal`: truncated normal with std 0.02, patch projection as torch has it (DINO, DeiT);
    `xavier`: uniform by the sizes of each layer, the patch projection too, class token almost 0 (MoCo v3, MAE)."""
    pool: Literal["cls", "mean"] = "cls"
    """The pooled features: the class token, or the mean of the patch tokens."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Probability of skipping a residual branch in training; it grows linearly from 0 in the first block to this in the
    last."""

    legacy: ClassVar[Mapping[str, Any]] = {"init": "normal", "patch_size": 16}


class ViT(Backbone):
    """Base class of the vision transformers.

    Attributes:
        patch_projection: the layer that embeds patches (MoCo v3 freezes it).
    """

    Options = ViTOptions
    name: ClassVar[str]
    dim: ClassVar[int]
    heads: ClassVar[int]
    pos_embed: Tensor

    def __init__(self, options: Any, channels: int, image_size: int) -> None:
        super().__init__()
        self.options = options = self.fit_options(options, image_size)
        patch: int = options.patch_size
        self.side = side = image_size // patch
        projection = nn.Conv2d(channels, self.dim, patch, stride=patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=projection))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        if options.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, self.dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.register_buffer("pos_embed", sincos_positions(side, self.dim))
        blocks = (TransformerBlock(self.dim, options.heads or self.heads) for _ in range(options.depth))
        self.blocks = (CheckpointedBlocks if options.gradient_checkpointing else nn.Sequential)(*blocks)
        self.norm = nn.LayerNorm(self.dim, eps=EPS)
        grow_drop_path(self, options.drop_path)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        initialize_transformer(self, options.init)
        if options.init == "xavier":
            nn.init.normal_(self.cls_token, std=1e-6)
            xavier_uniform(projection.weight, channels * patch**2, self.dim)
            nn.init.constant_(projection.get_parameter("bias"), 0.0)
        self.spec = BackboneSpec(
            self.dim, channels, minimum_size=patch, size_multiple=patch, patch_size=patch, maskable=True
        )

    @property
    def patch_projection(self) -> nn.Module:
        return self.patch_embed[0]

    def layer_modules(self) -> Sequence[nn.Module]:
        return tuple(self.blocks)

    @classmethod
    def fit_options(cls, options: Any, image_size: int, weights: Mapping[str, Tensor] | None = None) -> Any:
        """Returns the options with the patch size that `auto` comes to."""
        if options.patch_size != "auto":
            return options
        projection = given_shape(options, weights, "patch_embed.proj.weight")
        usual = 4 if image_size <= SMALL else 8 if image_size <= 2 * SMALL else 16
        return options.with_defaults(patch_size=usual if projection is None else projection[-1])

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> ViT:
        options = cls.fit_options(options, image_size)
        heads = options.heads or cls.heads
        if cls.dim % heads:
            raise UserError(f"backbone.heads: {cls.name} has {cls.dim} dimensions, not divisible by {heads} heads")
        if image_size % options.patch_size:
            raise UserError(
                f"backbone.patch_size: views of {image_size} pixels are not a multiple of {options.patch_size}: change "
                "patch_size or views.size"
            )
        return cls(options, channels, image_size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, D), and the patch tokens (N, L, D) with their grid, all behind the last norm.

        Args:
            x: (N, C, H, W); sides are multiples of the patch size, and may differ from those it was built for.
            mask: see `Backbone.forward`, as all others.
            mask_token: takes the place of a patch's embedding, before its position is added (SimMIM, iBOT, BEiT).
            keep: the class token sees only these patches, and the pooled mean is theirs.
            layers: see `Backbone.forward`.

        Raises:
            UserError: the sides are not multiples, or another argument is wrong.
        """
        patch = self.options.patch_size
        if x.shape[-2] % patch or x.shape[-1] % patch:
            raise UserError(
                f"backbone: {self.name} takes sides in multiples of {patch}, not {x.shape[-2]}×{x.shape[-1]} pixels"
            )
        refuse_layers(self.name, layers, most=len(self.blocks))
        grid = (x.shape[-2] // patch, x.shape[-1] // patch)
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)  # N×L×D
        check_request(self.name, tokens.shape[1], mask, mask_token, keep)
        if mask is not None and mask_token is not None:
            tokens = replace_masked(tokens, mask, mask_token)
        first = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        positions = self.positions(*grid)
        if keep is None:
            tokens = torch.cat([first, tokens], dim=1) + positions
        else:
            tokens = torch.cat([first + positions[:, :1], take(tokens + positions[:, 1:], keep)], dim=1)
        last = [self.norm(out) for out in last_outputs(self.blocks, tokens, layers)]
        cls, patches = last[-1][:, 0], last[-1][:, 1:]
        return Features(
            cls if self.options.pool == "cls" else patches.mean(dim=1),
            patches,
            grid if keep is None else None,
            tuple((out[:, 0], out[:, 1:]) for out in last),
        )

    def positions(self, rows: int, columns: int) -> Tensor:
        """Returns the positional embeddings (1, 1 + L, D) of a grid, interpolated from those of its own grid.

        Bicubic without antialiasing, and by the exact ratio of the sides, as in timm; DINO's code scales by
        (n + 0.1) / 14 for n patches, which changes the positions of a 6 × 6 grid by up to 3.6%.
        """
        if (rows, columns) == (self.side, self.side):
            return self.pos_embed
        own = self.pos_embed[0, 1:].reshape(self.side, self.side, -1)
        resized = resize_map(own, (rows, columns), "bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.reshape(1, rows * columns, -1)], dim=1)


ViTTiny, ViTSmall, ViTBase = (
    member(
        ViT,
        f"ViT{size.capitalize()}",
        f"ViT-{size}: {dim} features, {heads} heads, 12 blocks.",
        name=f"vit_{size}",
        dim=dim,
        heads=heads,
    )
    for size, dim, heads in (("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12))
)
