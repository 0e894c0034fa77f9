"""What an evaluation looks at: a frozen copy of a trained backbone, and the labelled images to judge it on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts.data import Dataset, Part
from ..contracts.errors import SslError, UserError
from ..contracts.evaluation import FeatureSet, Subject
from ..contracts.export import Trained
from .features import Precision, extract_features, normaliser


class FrozenSubject(Subject):
    """A trained backbone beside a training and an evaluation part; features are computed once and kept.

    The backbone is a copy, so that nothing an evaluator does reaches the caller's. Images are normalised with the
    numbers on its card, whatever data it is judged on.

    Raises:
        UserError: the images do not have the channels that the backbone takes.
    """

    def __init__(
        self,
        trained: Trained,
        train: Dataset | None,
        evaluation: Dataset | None,
        device: torch.device,
        *,
        seed: int = 0,
        batch_size: int = 256,
        precision: Precision = "fp32",
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.card = trained.card
        self.backbone = copy.deepcopy(trained.backbone).to(device).eval().requires_grad_(False)
        self.device = device
        self.seed = seed
        self.batch_size = batch_size
        self.precision = precision
        self.image_size = trained.card.image_size
        self.digest = trained.digest
        self._normalise = normaliser(self.card.mean, self.card.std, device)
        self._tell = tell
        self._datasets: dict[Part, Dataset | None] = {"train": train, "eval": evaluation}
        self._features: dict[Part, FeatureSet] = {}
        known = [data.info.classes for data in (train, evaluation) if data is not None and data.info.classes]
        self.classes = len(known[0]) if known else None
        for data in (train, evaluation):
            if data is not None and data.info.channels != self.card.channels:
                raise UserError(
                    f"{data.info.name}: its images have {data.info.channels} channels, the backbone takes "
                    f"{self.card.channels}; choose other data"
                )

    def dataset(self, part: Part) -> Dataset:
        data = self._datasets[part]
        if data is None:
            raise UserError(f"there are no labelled images for the part {part!r}; name a data set that has them")
        return data

    def features(self, part: Part) -> FeatureSet:
        if part not in self._features:
            data = self.dataset(part)
            if data.labels is None:
                raise UserError(
                    f"{data.info.name}: the images of the part {part!r} have no labels; name data with some"
                )
            self.tell(f"features of {len(data):,} images ({part})")
            features = extract_features(
                self.backbone,
                data,
                image_size=self.image_size,
                normalise=self.normalise,
                device=self.device,
                batch_size=self.batch_size,
                precision=self.precision,
            )
            if not bool(torch.isfinite(features.features).all()):
                raise UserError(
                    f"the backbone's features of {data.info.name} are not all finite; the run diverged, or "
                    f"{self.precision} is too coarse for it"
                )
            self._features[part] = features
        return self._features[part]

    def normalise(self, images: Tensor) -> Tensor:
        return self._normalise(images)

    def tell(self, text: str) -> None:
        self._tell(text)

    def describe(self) -> dict[str, Any]:
        card = self.card
        return {
            "backbone": dict(card.backbone),
            **({"projector_layers": dict(card.head)} if card.head is not None else {}),
            "method": card.method,
            "pretrained_on": card.dataset,
            "step": card.step,
            "epoch": card.epoch,
            "digest": self.digest,
            "feature": "pooled",
            "feature_dim": card.feature_dim,
            "image_size": self.image_size,
            "view": "each image once; one of another size is resized and cropped to the centre",
            "mean": list(card.mean),
            "std": list(card.std),
            "precision": self.precision,
            "device": self.device.type,
            "torch": torch.__version__,
            "seed": self.seed,
            **{part: self._describe_data(part) for part in ("train", "eval")},
        }

    def _describe_data(self, part: Part) -> dict[str, Any] | None:
        data = self._datasets[part]
        if data is None:
            return None
        options = {k: v for k, v in data.options.plain().items() if data.options.resume_rule(k) != "free"}
        described: dict[str, Any] = {"name": data.info.name, "images": len(data), **options}
        if part in self._features:
            described["unreadable"] = len(data) - len(self._features[part].features)
        return described


def require_parts(subject: Subject) -> int:
    """Checks that there are labelled images to fit a probe on, and others to judge it on; reads neither.

    Returns:
        the number of classes.

    Raises:
        UserError: a part is missing, has no labels or other classes, or both parts hold the same images.
    """
    train, evaluation = subject.dataset("train"), subject.dataset("eval")
    for data in (train, evaluation):
        if data.labels is None or not data.info.classes:
            raise UserError(f"{data.info.name}: has no labels; name a data set that has them")
    if train.info.classes != evaluation.info.classes:
        raise UserError(
            f"{train.info.name} and {evaluation.info.name} have different classes; a probe needs the same in both"
        )
    if share_images(train, evaluation):
        raise UserError(
            f"{train.info.name}: the images to fit on and to judge on are the same; "
            "choose another split for one of them"
        )
    return len(train.info.classes or ())


def share_images(first: Dataset, second: Dataset) -> bool:
    """Tells whether two data sets read from the same images: equal in class and options, but for `limit`."""
    return first is second or (type(first) is type(second) and _source(first) == _source(second))


def _source(data: Dataset) -> dict[str, Any]:
    values = {name: getattr(data.options, name) for name in type(data.options).model_fields if name != "limit"}
    return {k: v.expanduser().resolve() if isinstance(v, Path) else v for k, v in values.items()}


def labelled_features(subject: Subject, part: Part) -> tuple[Tensor, Tensor]:
    """Returns features (N, D) and labels (N,) of a part that `require_parts` has checked."""
    found = subject.features(part)
    if found.labels is None:
        raise SslError(f"the features of the part {part!r} came without labels")
    return found.features, found.labels
