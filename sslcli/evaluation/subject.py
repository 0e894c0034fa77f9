"""The subject of an evaluation: a frozen copy of a trained backbone, with labeled training and test images."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli.augmentations.resampling import Interpolation
from sslcli.contracts.data import Dataset, DatasetOptions, Part
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.evaluation import FeatureSet, Subject
from sslcli.contracts.export import Trained
from sslcli.data.subset import Subset
from sslcli.distributed import order
from sslcli.storage import expanded

from .extraction import extract_features, normalizer
from .feature import FeatureBackbone, meaning_of
from .seal import state_digest, unsealed

log = logging.getLogger(__name__)

#: The arithmetic of features and of what is fitted on them: without TF32 (`arithmetic.exact_float32`).
PRECISION = "fp32"


class FrozenSubject(Subject):
    """A trained backbone with a training and an evaluation part; features are computed once and kept.

    The backbone is a copy, so that nothing an evaluator does reaches the caller's. Images are normalized with the
    numbers on its card, whatever the data.

    Attributes:
        feature: which output of the network is its feature, see `feature.MEANING`.
        weights_sha256: digest of the network's state, see `state_digest`.
        number: its place among the subjects of an evaluation on several processes.

    Raises:
        UserError: the images do not have the channels that the backbone takes, or it does not have the feature.
    """

    def __init__(
        self,
        trained: Trained,
        train: Dataset | None,
        test: Dataset | None,
        device: torch.device,
        *,
        seed: int = 0,
        batch_size: int = 256,
        feature: str = "pooled",
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.card = trained.card
        self.feature = feature
        self.interpolation = interpolation
        self._network = self.backbone = copy.deepcopy(trained.backbone).to(device).eval().requires_grad_(False)
        self.weights_sha256 = state_digest(self._network)  # of the network alone, so the same for every feature
        if feature != "pooled":
            self.backbone = FeatureBackbone(self._network, feature, trained.card.image_size).eval()
        self.device = device
        self.seed = seed
        self.number = 0
        self.batch_size = batch_size
        self.image_size = trained.card.image_size
        self.digest = trained.digest
        self._normalize = normalizer(self.card.mean, self.card.std, device)
        self._datasets: dict[Part, Dataset | None] = {"train": train, "eval": test}
        self._features: dict[Part, FeatureSet] = {}
        self._versions: dict[Part, int] = {}
        given = [data for data in (train, test) if data is not None]
        self.classes = next((len(data.info.classes) for data in given if data.info.classes), None)
        for data in given:
            if data.info.channels != self.card.channels:
                raise UserError(
                    f"{data.info.name}: its images have {data.info.channels} channels, but the backbone takes "
                    f"{self.card.channels}; choose other data"
                )

    def dataset(self, part: Part) -> Dataset:
        data = self._datasets[part]
        if data is None:
            raise UserError(f"there are no labeled images for the part {part!r}; choose a dataset that has them")
        return data

    def features(self, part: Part) -> FeatureSet:
        if part not in self._features:
            data = self.dataset(part)
            for other, known in self._features.items():
                if self._datasets[other] is data:
                    return known
            log.info(f"features of {len(data):,} images ({part}), {PRECISION} on {self.device.type}")
            # Where it leads other processes, each computes a share.
            shared = order((self.number, part))
            features = extract_features(self.backbone, data, self, self.batch_size, shared=shared)
            if not bool(torch.isfinite(features.features).all()):
                raise UserError(f"the backbone's features of {data.info.name} are not all finite; the run diverged")
            self._features[part] = features
            self._versions[part] = features.features._version
        return self._features[part]

    def assist(self, part: Part) -> None:
        """Computes this process's share of the features that the main process is about to compute."""
        extract_features(self.backbone, self.dataset(part), self, self.batch_size, shared=True)

    def check_unchanged(self, evaluator: str) -> None:
        """Checks that backbone and shared features are bitwise as they were before an evaluation.

        Raises:
            SslError: naming the evaluator.
        """
        if state_digest(self._network) != self.weights_sha256:
            raise SslError(
                f"the evaluator {evaluator!r} has changed the backbone (weights, statistics, mode or "
                "what gets gradients); nothing was written: it must work on a copy"
            )
        for part, kept in self._features.items():
            if kept.features._version != self._versions[part]:
                raise SslError(
                    f"the evaluator {evaluator!r} has changed the features of the part {part!r} in place, which are "
                    "shared; nothing was written: it must work on a copy"
                )

    def normalize(self, images: Tensor) -> Tensor:
        return self._normalize(images)

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
            "feature": self.feature,
            "feature_of": meaning_of(self.feature),
            "feature_dim": self.backbone.spec.feature_dim,
            "image_size": self.image_size,
            "view": "each image once; one of another size is resized and cropped to the center",
            "interpolation": self.interpolation,
            "mean": list(card.mean),
            "std": list(card.std),
            "precision": PRECISION,
            "device": self.device.type,
            "torch": torch.__version__,
            "seed": self.seed,
            **{part: self._describe_data(part) for part in ("train", "eval")},
        }

    def _describe_data(self, part: Part) -> dict[str, Any] | None:
        data = self._datasets[part]
        if data is None:
            return None
        described = describe_data(data) | {"images": len(data)}
        if part in self._features:
            described["unreadable"] = len(data) - len(self._features[part].features)
        return described


def describe_data(data: Dataset) -> dict[str, Any]:
    """Returns the name of a dataset and the options that decide what it reads, as plain data."""
    options = {k: v for k, v in data.options.plain().items() if data.options.resume_rule(k) != "free"}
    return {"name": data.info.name, **options}


def require_parts(subject: Subject) -> int:
    """Checks that there are labeled training and test images for a probe; reads neither.

    Returns:
        the number of classes.

    Raises:
        UserError: a part is missing, has no labels or other classes, or both parts are the same images.
    """
    open_subject = unsealed(subject)  # the seal is on images and labels, and neither is read here
    train, test = open_subject.dataset("train"), open_subject.dataset("eval")
    for data in (train, test):
        if data.labels is None or not data.info.classes:
            raise UserError(f"{data.info.name}: has no labels; choose a dataset that has them")
    if train.info.classes != test.info.classes:
        raise UserError(
            f"{train.info.name} and {test.info.name} have different classes; a probe needs the same in both"
        )
    if same_images(train, test):
        raise UserError(
            f"{train.info.name}: the training and the test images are the same; choose another split for one of them"
        )
    return len(train.info.classes or ())


def same_images(first: Dataset, second: Dataset) -> bool:
    """Returns whether two datasets read from the same images: equal in class and options, except for `limit`."""
    return source_of(first) == source_of(second)


def source_of(data: Dataset) -> tuple[type[Dataset], dict[str, Any]]:
    """Returns what decides which images a dataset, or the one that a subset is of, reads: its class and its options
    except `limit`, links followed."""
    while isinstance(data, Subset):
        data = data.data
    return type(data), resolved(data.options)


def resolved(options: DatasetOptions) -> dict[str, Any]:
    """Returns the options of a dataset except `limit`, links followed."""
    values = {name: getattr(options, name) for name in type(options).model_fields if name != "limit"}
    return {k: expanded(v).resolve() if isinstance(v, Path) else v for k, v in values.items()}


def labeled_features(subject: Subject, part: Part) -> tuple[Tensor, Tensor]:
    """Returns features (N, D) and labels (N,) of a part that `require_parts` has checked."""
    found = subject.features(part)
    assert found.labels is not None
    return found.features, found.labels
