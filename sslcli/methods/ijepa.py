"""I-JEPA: from the features of a context, predict those that a slowly moving copy has of hidden blocks of the image.

Assran et al., *Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture*,
https://arxiv.org/abs/2301.08243.
"""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import (
    Batch,
    DefaultSections,
    Method,
    MethodOptions,
    Progress,
    RunInfo,
    Step,
    StepFunction,
)
from sslcli.contracts.views import RecipeSection
from sslcli.losses import masked_features_and_metrics
from sslcli.modules import MomentumEncoder
from sslcli.modules.drop_path import set_drop_path
from sslcli.modules.masks import block_mask, block_size, check_grid, places, take
from sslcli.modules.token_predictor import TokenPredictor, TokenPredictorOptions

Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]


class IJEPAPredictorOptions(TokenPredictorOptions):
    """The predictor, a narrow transformer that is used in training only."""

    dim: int | None = Field(default=None, ge=4, multiple_of=4)
    """Its width; null: half of the encoder's, at most 384, in multiples of 32: the authors' 384 from ViT-B on."""
    depth: int = Field(default=6, ge=1, le=1000)
    """Number of blocks; 12 for ViT-L and ViT-H."""


class IJEPAOptions(MethodOptions):
    """Options of I-JEPA."""

    target_blocks: int = Field(default=4, ge=1)
    """Blocks of patches in an image whose features are predicted, each by itself; they may overlap."""
    target_scale: tuple[Share, Share] = (0.15, 0.2)
    """Least and largest share of the patches that such a block covers."""
    target_ratio: tuple[Ratio, Ratio] = (0.75, 1.5)
    """Its least and largest height by width."""
    context_scale: tuple[Share, Share] = (0.85, 1.0)
    """Least and largest share of the patches in the square block from which the context is taken: what is in none of
    the target blocks."""
    context_patches: float = Field(default=0.25, gt=0, le=1)
    """Share of the patches that the context encoder sees, the same number in all images: the first ones of the context
    in reading order, then others that are in no target block. The authors cut to the fewest of a batch, 26% on
    average with 128 images of 14 × 14 patches."""
    predictor: IJEPAPredictorOptions = IJEPAPredictorOptions()
    """What predicts the features."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Initial EMA momentum of the target encoder."""
    final_momentum: float = Field(default=1.0, ge=0, le=1)
    """EMA momentum at the end of the run, approached along a straight line."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        for name in ("target_scale", "target_ratio", "context_scale"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name}: should be the least and the largest, not [{least:g}, {largest:g}]")
        if self.target_blocks * self.target_scale[1] >= 1:
            raise ValueError(
                f"target_blocks {self.target_blocks} of {self.target_scale[1]:g} of the patches could hide all of them:"
                " fewer, or a smaller target_scale"
            )
        return self

    def momentum_at(self, step: int, total_steps: int) -> float:
        """Returns m₀ + (m_T − m₀)·t/T, the momentum of the update after step t of T, counted from 0."""
        return self.momentum + (self.final_momentum - self.momentum) * step / total_steps


class IJEPA(Method):
    """I-JEPA: predicts features of hidden blocks of an image from those of a part of the rest.
    The loss is the smooth L1 distance from the normalized features that a momentum encoder has of the whole image.

    It needs a vision transformer, one view, and many images. Evaluated and exported: the momentum encoder.
    """

    Options = IJEPAOptions
    view_count = 1
    paper = "https://arxiv.org/abs/2301.08243"
    year = 2023
    needs = ("ViT",)

    options: IJEPAOptions

    def __init__(self, backbone: Backbone, options: IJEPAOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        features = backbone.spec.feature_dim
        self.patch_size = backbone.spec.patch_size or 1
        side = max(run.view_sizes, default=self.patch_size) // self.patch_size
        check_grid("ijepa", run.view_sizes, self.patch_size, 3)  # of fewer some images have no context
        draws = torch.linspace(0, 1, 1025, device="cpu")  # also where the method is built without memory
        height, width = block_size(draws, (side, side), options.target_scale, options.target_ratio)
        self.most = int((height * width).max())  # patches of a target block
        dim = predictor_dim(options, features)
        self.predictor = TokenPredictor(features, features, side, options.predictor, dim, "normal")
        self.momentum_encoder = MomentumEncoder(backbone=backbone)
        set_drop_path(self.momentum_encoder, 0.0)  # it runs in training mode, and must not draw

    @classmethod
    def recipe(cls, options: IJEPAOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """A crop of 30% or more, nothing else."""
        return [{"crop_scale": [0.3, 1.0]}]

    @classmethod
    def defaults(cls, options: IJEPAOptions, spec: BackboneSpec) -> DefaultSections:
        """The authors' configs for 300 epochs, with their learning rate of 0.001 at 2048 images in proportion to the
        batch; they pool the patches, having no class token."""
        return {
            "optimizer": {
                "name": "adamw",
                "lr": 1.25e-4,
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
                "exclude": ["norm", "bias"],
                "scale_lr": "batch/256",
            },
            "schedule": {"name": "cosine", "warmup_epochs": 40, "warmup_start": 0.2, "final": 0.001},
            "backbone": {"positions": "sincos", "pool": "mean"},
        }

    def schedules(self) -> dict[str, StepFunction]:
        """The EMA momentum m(t), by which the momentum encoder follows after step t."""
        total = self.run.total_steps
        return {"momentum": lambda step: self.options.momentum_at(step, total)}

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, `explained` and `target_std` (see `masked_features_and_metrics`), and the momentum
        encoder's features of the view."""
        images = batch.views[0].image
        grid = self._grid(images)
        context, targets, weights = self.draw(batch, grid)
        tokens = self.backbone(images, keep=context).tokens  # N×K×D
        prediction = self.predictor(tokens, context, targets, grid)  # N×B×M×D
        with torch.no_grad():
            whole = self.momentum_encoder.backbone(images)
            features = take(whole.tokens, targets.flatten(1)).reshape(prediction.shape)
        loss, metrics = masked_features_and_metrics(prediction, features, weights)
        return Step(loss, metrics, features=whole.pooled)

    def visible_patches(self, batch: Batch) -> dict[str, tuple[int, Tensor]]:
        grid = self._grid(batch.views[0].image)
        context, targets, _ = self.draw(batch, grid)
        parts = {"context": context, **{f"target {n}": block for n, block in enumerate(targets.unbind(1), start=1)}}
        nothing = torch.zeros(len(context), grid[0] * grid[1], dtype=torch.bool, device=context.device)
        return {name: (0, nothing.scatter(1, place, True)) for name, place in parts.items()}

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def draw(self, batch: Batch, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns places of the context (N, K) and of the targets (N, B, M), and weights of the latter (N, B, M).

        Blocks have their own size in each image, and tensors the same in all: M is the most patches of a target block.
        A smaller one has its first patches again, with weight 0; the weights of a block have the sum 1.
        """
        options, blocks = self.options, self.options.target_blocks
        uniform = batch.uniform(4 + 2 * blocks)
        height, width = block_size(uniform[:, :1], grid, options.target_scale, options.target_ratio)  # N×1
        targets = block_mask(uniform[:, 4:].reshape(-1, blocks, 2), grid, height, width)  # N×B×L
        sides = block_size(uniform[:, 1], grid, options.context_scale, (1.0, 1.0))  # N
        within = block_mask(uniform[:, 2:4], grid, *sides)  # N×L
        rank = ~targets.any(dim=1) * (1 + within.int())
        length = grid[0] * grid[1]
        context = places(rank, max(1, round(length * options.context_patches)))
        most = min(self.most, length)
        order = torch.arange(most, device=uniform.device)
        area = (height * width).clamp(max=most).unsqueeze(-1)  # N×1×1
        weights = ((order < area) / area).expand(-1, blocks, -1)
        return context, places(targets.flatten(0, 1), most).reshape(-1, blocks, most), weights

    def after_step(self, carry: list[dict[str, Tensor]], progress: Progress) -> None:
        value = self.options.momentum_at(progress.step - 1, progress.total_steps)
        self.momentum_encoder.follow(backbone=self.backbone, value=value)

    def encoder(self) -> Backbone:
        """The momentum encoder's backbone, which the authors evaluate."""
        backbone: Backbone = self.momentum_encoder.backbone
        return backbone


def predictor_dim(options: IJEPAOptions, features: int) -> int:
    """Returns the width of the predictor behind an encoder with so many features."""
    return options.predictor.dim or max(32, min(384, features // 2 // 32 * 32))
