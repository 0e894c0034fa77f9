"""A joint-embedding predictive architecture in one plugin file: Assran et al. (I-JEPA), https://arxiv.org/abs/2301.08243.

The context encoder sees the patches outside of a few blocks; a predictor predicts what the EMA teacher, which sees the
whole image, makes of the blocks.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Method, MethodOptions, Step
from sslcli.modules import MomentumEncoder
from sslcli.modules.masks import random_block, take
from sslcli.modules.transformer import TransformerBlock, initialize_transformer, sincos_positions


class JepaOptions(MethodOptions):
    """Options of the predictive architecture."""

    blocks: int = Field(default=4, ge=1)
    """Target blocks of an image."""
    scale: float = Field(default=0.17, gt=0, le=0.5)
    """Share of the patches that a block covers."""
    predictor_dim: int = Field(default=384, ge=4, multiple_of=4)
    """Width of the predictor."""
    predictor_depth: int = Field(default=6, ge=1)
    """Its blocks."""
    predictor_heads: int = Field(default=12, ge=1)
    """Its attention heads."""
    momentum: float = Field(default=0.996, ge=0, le=1)
    """EMA momentum of the teacher at the start; it rises linearly to 1."""


class Jepa(Method):
    """Predicts features of hidden blocks."""

    Options = JepaOptions
    view_count = 1

    def __init__(self, backbone, options, run):
        super().__init__(backbone, options, run)
        spec = backbone.spec
        if not spec.maskable:
            raise UserError("method: jepa needs a vision transformer, such as backbone=vit_small")
        self.side, width = run.view_sizes[0] // spec.patch_size, options.predictor_dim
        self.teacher = MomentumEncoder(backbone=backbone)
        self.embed, self.out = nn.Linear(spec.feature_dim, width), nn.Linear(width, spec.feature_dim)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sincos_positions(self.side, width)[:, 1:])
        blocks = [TransformerBlock(width, options.predictor_heads) for _ in range(options.predictor_depth)]
        self.predictor = nn.Sequential(*blocks, nn.LayerNorm(width))
        initialize_transformer(nn.ModuleList([self.embed, self.predictor, self.out]))

    @classmethod
    def recipe(cls, options, image_size, spec):
        return [{"crop_scale": [0.3, 1.0]}]

    @classmethod
    def defaults(cls, options, spec):
        return {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.04}, "schedule": {"name": "cosine"}}

    def forward(self, batch):
        images, grid, length = batch.views[0].image, (self.side, self.side), self.side**2
        places = batch.uniform(2 * self.options.blocks).chunk(self.options.blocks, 1)
        targets = [random_block(each, grid, self.options.scale, (1, 1)) for each in places]
        hidden = torch.zeros(len(images), length, device=images.device).scatter(1, torch.cat(targets, 1), 1)
        # As many visible patches for all images: of those left, in their order, as many as there are at least.
        least = max(1, length - self.options.blocks * targets[0].shape[1])
        context = hidden.sort(dim=1, stable=True).indices[:, :least]
        features = self.backbone(images, keep=context)
        with torch.no_grad():
            whole = self.teacher.backbone(images).tokens.float()
            whole = F.layer_norm(whole, whole.shape[-1:])
        positions, losses = self.positions.expand(len(images), -1, -1), []
        seen = self.embed(features.tokens) + take(positions, context)
        for target in targets:
            asked = self.mask_token.to(seen.dtype) + take(positions, target).to(seen.dtype)
            found = self.out(self.predictor(torch.cat([seen, asked], 1))[:, seen.shape[1] :])
            losses.append(F.smooth_l1_loss(found.float(), take(whole, target)))
        return Step(torch.stack(losses).mean(), features=features.pooled.detach().float())

    def after_step(self, carry, progress):
        share = (progress.step - 1) / progress.total_steps
        self.teacher.follow(backbone=self.backbone, value=self.options.momentum + (1 - self.options.momentum) * share)

    def encoder(self):
        return self.teacher.backbone
