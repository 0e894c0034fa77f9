"""MAE: an encoder sees a quarter of the patches, and a small decoder predicts the pixels of the others.

He et al., *Masked Autoencoders Are Scalable Vision Learners*, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sslcli.contracts.backbone import Backbone, BackboneSpec
from sslcli.contracts.method import Batch, DefaultSections, Method, MethodOptions, RunInfo, Step
from sslcli.contracts.views import RecipeSection
from sslcli.losses import masked_pixels_and_metrics
from sslcli.modules.masks import check_grid, places, random_keep, take
from sslcli.modules.token_predictor import TokenPredictor, TokenPredictorOptions
from sslcli.modules.transformer import patches_of


class MAEDecoderOptions(TokenPredictorOptions):
    """The decoder, a narrow transformer that is used in training only."""

    dim: int | None = Field(default=None, ge=4, multiple_of=4)
    """Its width; null: two thirds of the encoder's, at most 512, in multiples of 32: the paper's 512 from ViT-B on."""


class MAEOptions(MethodOptions):
    """Options of MAE."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is hidden from the encoder; at least one patch is hidden, and one is seen."""
    normalize_pixels: bool = True
    """Predict the pixels of each patch less their mean, divided by their standard deviation, as in the authors' runs;
    false: the pixels of the normalized view."""
    decoder: MAEDecoderOptions = MAEDecoderOptions()
    """What predicts the pixels."""


class MAE(Method):
    """MAE: predicts the pixels of hidden patches from the visible ones, which are all that the encoder computes.
    The loss is the squared error of the normalized pixels of hidden patches: predicting 0 gets 1.

    It needs a vision transformer, and one view of weak augmentation. The features of a step, for the online probe, are
    those of the visible patches.
    """

    Options = MAEOptions
    view_count = 1
    paper = "https://arxiv.org/abs/2111.06377"
    year = 2021
    needs = ("ViT",)

    options: MAEOptions

    def __init__(self, backbone: Backbone, options: MAEOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        spec = backbone.spec
        self.patch_size = spec.patch_size or 1
        side = max(run.view_sizes, default=self.patch_size) // self.patch_size
        check_grid("mae", run.view_sizes, self.patch_size, 2)  # one is seen, and one is hidden
        pixels = self.patch_size**2 * spec.channels
        dim = decoder_dim(options, spec.feature_dim)
        self.decoder = TokenPredictor(spec.feature_dim, pixels, side, options.decoder, dim, "xavier")

    @classmethod
    def recipe(cls, options: MAEOptions, image_size: int, spec: BackboneSpec) -> RecipeSection:
        """A crop of a fifth or more, and a flip."""
        return [{"crop_scale": [0.2, 1.0], "interpolation": "bicubic", "flip": 0.5}]

    @classmethod
    def defaults(cls, options: MAEOptions, spec: BackboneSpec) -> DefaultSections:
        """The command for 800 epochs of the authors' PRETRAIN.md, and the weights of models_mae.py; patches are pooled,
        as in the authors' fine-tuning, since no loss says what the class token should be."""
        return {
            "optimizer": {
                "name": "adamw",
                "lr": 1.5e-4,
                "weight_decay": 0.05,
                "betas": [0.9, 0.95],
                "exclude": ["norm", "bias"],
                "scale_lr": "batch/256",
            },
            "schedule": {"name": "cosine", "warmup_epochs": 40},
            "backbone": {"init": "xavier", "positions": "sincos", "pool": "mean"},
        }

    def forward(self, batch: Batch) -> Step:
        """Returns the loss, `explained` (see `masked_pixels_and_metrics`), and the features of the visible patches."""
        images = batch.views[0].image
        grid = self._grid(images)
        keep, mask = self._drawn(batch)  # N×K, N×L
        hidden = places(mask, grid[0] * grid[1] - keep.shape[1])
        features = self.backbone(images, keep=keep)
        cls, tokens = features.layers[-1]  # N×D, N×K×D
        prediction = self.decoder(tokens, keep, hidden.unsqueeze(1), grid, cls).squeeze(1)
        pixels = take(patches_of(images, self.patch_size), hidden)
        loss, metrics = masked_pixels_and_metrics(prediction, pixels, self.options.normalize_pixels)
        return Step(loss, metrics, features=features.pooled.detach())

    def visible_patches(self, batch: Batch) -> dict[str, tuple[int, Tensor]]:
        return {"visible": (0, ~self._drawn(batch)[1])}

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which patches are seen, as `random_keep` has them."""
        rows, columns = self._grid(batch.views[0].image)
        count = int(rows * columns * (1 - self.options.mask_ratio))
        return random_keep(batch.uniform(rows * columns), min(max(1, count), rows * columns - 1))


def decoder_dim(options: MAEOptions, features: int) -> int:
    """Returns the width of the decoder behind an encoder with so many features."""
    return options.decoder.dim or max(32, min(512, 2 * features // 3 // 32 * 32))
