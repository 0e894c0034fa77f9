"""A masked autoencoder in one plugin file, by the public contracts alone: He et al., https://arxiv.org/abs/2111.06377.

The encoder sees a quarter of the patches; a small decoder predicts the pixels of the others, normalized by patch.
"""

import torch
from pydantic import Field
from torch import nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method, MethodOptions, Step
from sslcli.modules.masks import random_keep
from sslcli.modules.transformer import TransformerBlock, initialize_transformer, patches_of, sincos_positions


class MaskedAutoencoderOptions(MethodOptions):
    """Options of the masked autoencoder."""

    ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that are hidden."""
    decoder_dim: int = Field(default=512, ge=4, multiple_of=4)
    """Width of the decoder."""
    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder."""
    decoder_heads: int = Field(default=16, ge=1)
    """Its attention heads."""


class MaskedAutoencoder(Method):
    """Predicts hidden patches from visible ones."""

    Options = MaskedAutoencoderOptions
    view_count = 1
    paper = "https://arxiv.org/abs/2111.06377"

    def __init__(self, backbone, options, run):
        super().__init__(backbone, options, run)
        spec = backbone.spec
        if not spec.maskable:
            raise UserError("method: masked_autoencoder needs a vision transformer, such as backbone=vit_small")
        self.patch, self.side = spec.patch_size, run.view_sizes[0] // spec.patch_size
        self.embed = nn.Linear(spec.feature_dim, options.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(options.decoder_dim))
        self.register_buffer("positions", sincos_positions(self.side, options.decoder_dim)[:, 1:])
        blocks = [TransformerBlock(options.decoder_dim, options.decoder_heads) for _ in range(options.decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(options.decoder_dim))
        self.pixels = nn.Linear(options.decoder_dim, self.patch**2 * spec.channels)
        initialize_transformer(nn.ModuleList([self.embed, self.decoder, self.pixels]))
        nn.init.normal_(self.mask_token, std=0.02)

    @classmethod
    def recipe(cls, options, image_size, spec):
        return [{"crop_scale": [0.2, 1.0], "flip": 0.5}]

    @classmethod
    def defaults(cls, options, spec):
        return {
            "optimizer": {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05, "betas": [0.9, 0.95]},
            "schedule": {"name": "cosine", "warmup_epochs": 40},
        }

    def forward(self, batch):
        images = batch.views[0].image
        length = self.side**2
        keep, hidden = random_keep(batch.uniform(length), max(1, round(length * (1 - self.options.ratio))))
        features = self.backbone(images, keep=keep)
        seen = self.embed(features.tokens)  # N×K×D
        tokens = self.mask_token.to(seen.dtype).expand(len(images), length, -1)
        tokens = tokens.scatter(1, keep.unsqueeze(-1).expand_as(seen), seen) + self.positions
        target = patches_of(images, self.patch).float()
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        error = (
            (self.pixels(self.decoder(tokens)).float() - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
        )
        loss = (error * hidden).sum() / hidden.sum()
        return Step(loss, features=features.pooled.detach().float())
