"""The evaluator `quality`: how much of their space the features use, without a label and without training anything."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sslcli.contracts.data import Dataset, Part
from sslcli.contracts.errors import UnreadableImage, UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.contracts.options import Options
from sslcli.contracts.views import ViewSpec
from sslcli.data.subset import fixed_choice
from sslcli.evaluation.extraction import THREADS
from sslcli.evaluation.quality import alignment, effective_rank, feature_std, rank_me, roy_vetterli_rank, uniformity
from sslcli.views.pipeline import ViewMaker

from .probes.images import normalization_of, read_views, views_for

log = logging.getLogger(__name__)

BATCH = 256
SIMCLR: dict[str, Any] = {"preset": "simclr"}


class QualityOptions(Options):
    part: Part = "eval"
    """Which images to use: the test images, or those that probes are trained on (`train`); without labels both are the
    same."""
    limit: int | None = Field(default=25_600, ge=2)
    """Use this many images, a fixed random choice: ranks grow with the number. RankMe's paper uses 25,600."""
    views: dict[str, Any] = SIMCLR
    """The two views of an image for alignment, as in a run's config; use the same for all runs that are compared. If
    the recipe has more views, two of the largest are used."""
    alpha: float = Field(default=2.0, gt=0)
    """α of alignment, the mean of ‖z₁ − z₂‖^α."""
    t: float = Field(default=2.0, gt=0)
    """t of uniformity, the log of the mean of exp(−t·‖zᵢ − zⱼ‖²)."""
    epsilon: float = Field(default=1e-7, gt=0)
    """ε of RankMe."""

    @field_validator("views")
    @classmethod
    def _resolvable(cls, value: dict[str, Any]) -> dict[str, Any]:
        read_views(value, SIMCLR, 224)
        return value


class Quality(Evaluator):
    """Ranks and spread of the features, no labels needed. `rank_me`, `effective_rank` (of the covariance's eigenvalues)
    and `roy_vetterli_rank` (Roy and Vetterli's effective rank, of singular values) count the dimensions in use (1 to
    min(N, D); higher is better among runs of one backbone on the same images), `alignment` is 0 where two views of
    an image have the same features (lower is better), `uniformity` is 0 where all images do and about −2t where they
    fill the sphere (lower is better), `feature_std` is 1 for normalized features spread evenly over it and 0 for
    a collapsed network."""

    Options = QualityOptions
    options: QualityOptions
    needs_labels = False
    chooses = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        options = self.options
        features = subject.features(options.part).features
        data = subject.dataset(options.part)
        pair = two_views(views_for(subject, options.views, SIMCLR))
        if len(features) < 2:
            raise UserError(f"{data.info.name}: quality needs at least two images; choose larger data")
        z = features[fixed_choice(len(features), options.limit).to(features.device)]
        indices = fixed_choice(len(data), options.limit)
        log.info(f"quality: two views of {len(indices):,} images ({options.part})")
        z1, z2 = view_features(subject, data, indices, pair)
        metrics = {
            "rank_me": float(rank_me(z, options.epsilon)),
            "effective_rank": float(effective_rank(z)),
            "roy_vetterli_rank": float(roy_vetterli_rank(z)),
            "alignment": float(alignment(z1, z2, options.alpha)),
            "uniformity": float(uniformity(z, options.t)),
            "feature_std": float(feature_std(z)),
        }
        protocol = {
            **subject.describe(),
            "evaluator": "quality",
            **options.plain(),
            "images": len(z),
            "pairs": len(z1),
            "alignment_views": [view.plain() for view in pair],
            "rank_me_of": "singular values of the features, neither centered nor normalized",
            "effective_rank_of": "eigenvalues of the features' covariance (squared singular values)",
            "roy_vetterli_rank_of": "singular values of the centered features",
            "alignment_of": "two drawn views of each image, L2-normalized",
            "uniformity_of": "the undistorted images, L2-normalized",
        }
        return EvaluationResult(metrics, protocol)


def two_views(views: tuple[ViewSpec, ...]) -> tuple[ViewSpec, ...]:
    """Returns two views of one image each: the first two of the largest ones, or the only one twice."""
    largest = max(view.size for view in views)
    pairs = [view.model_copy(update={"count": 1}) for view in views if view.size == largest for _ in range(view.count)]
    return tuple((pairs * 2)[:2])


def view_features(
    subject: Subject, data: Dataset, indices: Tensor, views: tuple[ViewSpec, ...]
) -> tuple[Tensor, Tensor]:
    """Computes the features of two views of each image; the draws are a function of the subject's seed and the index.

    Args:
        subject: whose backbone and normalization are used.
        data: the images.
        indices: (N,) int64, which of them; those that cannot be read are left out.
        views: two, of one image each.

    Returns:
        two times (N', D) float32 on the device, the same images in the same order.
    """
    mean, std = normalization_of(subject, data.info.channels)
    maker = ViewMaker(views, data.info.channels, mean, std, subject.seed)
    resident = data.images()
    pairs: list[list[Tensor]] = []
    with torch.no_grad(), ThreadPoolExecutor(THREADS) as pool:
        for block in torch.split(indices, BATCH):
            if resident is not None:
                images = [resident[block].to(subject.device)]
                draws = maker.draw(0, block, torch.tensor([images[0].shape[-2:]]).expand(len(block), 2))
            else:
                found = zip(block.tolist(), pool.map(partial(_read, data), block.tolist()), strict=True)
                good = {index: image for index, image in found if image is not None}
                if not good:
                    continue
                sizes = torch.tensor([image.shape[-2:] for image in good.values()])
                draws = maker.draw(0, torch.tensor(list(good)), sizes)
                crops = pool.map(maker.crop_one, good.values(), [draws] * len(good), range(len(good)))
                images = [torch.stack(view).to(subject.device) for view in zip(*crops, strict=True)]
            made = maker.apply(images, draws.to(subject.device), cropped=resident is None)
            pairs.append([subject.backbone(view).pooled.float() for view in made])
    if not pairs:
        raise UserError(f"{data.info.name}: none of the images can be read")
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)


def _read(data: Dataset, index: int) -> Tensor | None:
    try:
        return data.image(index)
    except UnreadableImage:
        return None
