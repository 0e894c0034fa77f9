"""The seal on the test images: nothing can be chosen by what is measured on them.

An evaluator gets a `SealedSubject`, which hands out the part `eval` only after the evaluator has reported its choice. A
choice made on the test set (of a learning rate, a strength, a number of epochs) gives numbers that do not hold on other
images; here it is an error that names the evaluator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.data import Dataset, Part
from sslcli.contracts.errors import SslError, UserError
from sslcli.contracts.evaluation import FeatureSet, Subject


class SealedSubject(Subject):
    """A subject as one evaluator gets it: with a seed of its own, the same features, and a seal on the part `eval`.

    Args:
        subject: the subject itself, whose features are computed once for all evaluators and seeds.
        name: the evaluator's, for messages.
        seed: for this evaluator.
        chooses: False for an evaluator that chooses nothing; there is no seal then.
        needs_labels: features without labels are refused.
    """

    def __init__(
        self, subject: Subject, name: str, *, seed: int, chooses: bool = True, needs_labels: bool = True
    ) -> None:
        self._subject = subject
        self._name = name
        self._opened = False
        self._sealed = chooses
        self._needs_labels = needs_labels
        self.decided: dict[str, Any] | None = None
        self.seed = seed
        self.backbone = subject.backbone
        self.device = subject.device
        self.classes = subject.classes
        self.image_size = subject.image_size
        self.interpolation = subject.interpolation

    def features(self, part: Part) -> FeatureSet:
        self._open(part)
        found = self._subject.features(part)
        if self._needs_labels and found.labels is None:
            raise UserError(f"the images of the part {part!r} have no labels; choose data that has some")
        return found

    def dataset(self, part: Part) -> Dataset:
        self._open(part)
        return self._subject.dataset(part)

    def decide(self, choice: Mapping[str, Any]) -> None:
        """Breaks the seal.

        Raises:
            SslError: the part `eval` was read already, or the choice is not plain data.
        """
        if self._opened:
            raise SslError(
                f"the evaluator {self._name!r} chooses after it has read the test images; it must choose before, on "
                "training images alone"
            )
        try:
            self.decided = json.loads(json.dumps(dict(choice), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SslError(f"the evaluator {self._name!r} must describe its choice as plain data: {error}") from error

    def normalize(self, images: Tensor) -> Tensor:
        return self._subject.normalize(images)

    def describe(self) -> dict[str, Any]:
        return {**self._subject.describe(), "seed": self.seed}

    def _open(self, part: Part) -> None:
        if part != "eval":
            return
        if self._sealed and self.decided is None:
            raise SslError(
                f"the evaluator {self._name!r} asks for the test images before it has said what it chose: call "
                "subject.decide({…}) once everything is settled on training images, or declare chooses = False if "
                "nothing is ever chosen"
            )
        self._opened = True


def unsealed(subject: Subject) -> Subject:
    """Returns the subject behind the seal, for checks that read no image and no label's value; not for evaluators."""
    return subject._subject if isinstance(subject, SealedSubject) else subject


def state_digest(module: nn.Module) -> str:
    """Returns the sha256 of all that an evaluation may not change: parameters, buffers, modes, what gets gradients.

    One pass over the weights on the CPU: 45 MB take some 0.1 s.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        digest.update(f"{name} {part.training}\0".encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} {tensor.requires_grad}\0".encode())
        if values.numel():
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
