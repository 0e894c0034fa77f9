"""A tiny backbone with batch norm, datasets in memory, and a run's context, for the tests of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.callback import RunContext
from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions
from sslcli.contracts.errors import UnreadableImage
from sslcli.contracts.evaluation import FeatureSet, Subject
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.contracts.method import Progress
from sslcli.evaluation.extraction import normalizer


class TinyBackbone(Backbone):
    """One convolution, batch norm, dropout, pooling; counts its calls."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=dim)
        self.conv = nn.Conv2d(3, dim, 3, padding=1)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    @classmethod
    def build(cls, options, channels, image_size):
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        self.calls += 1
        return Features(self.dropout(self.norm(self.conv(x)).relu()).mean(dim=(2, 3)))


class InMemory(Dataset):
    """Random images whose mean color tells the class, for a part of them; `split` tells parts apart."""

    splits = ("train", "test")

    def __init__(self, labels: Tensor | None, count: int, size: int = 8, split: str = "train", resident: bool = True):
        super().__init__(DatasetOptions(split=split))
        self.labels = labels
        g = torch.Generator().manual_seed(1 if split == "train" else 2)
        pixels = torch.randint(0, 256, (count, 3, size, size), generator=g)
        classes = int(labels.max()) + 1 if labels is not None else 0
        if labels is not None:
            color = torch.randint(0, 256, (classes, 3), generator=torch.Generator().manual_seed(3))
            pixels = (pixels + color[labels][:, :, None, None]) // 2
        self.pixels = pixels.to(torch.uint8)
        self.resident = resident
        names = tuple(f"class {i}" for i in range(classes)) or None
        self.info = DataInfo("memory", 3, (size, size), (0.5,) * 3, (0.25,) * 3, names)
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> Tensor:
        if index in self.damaged:
            raise UnreadableImage(f"{index}.png", "cut short")
        return self.pixels[index]

    def images(self) -> Tensor | None:
        return self.pixels if self.resident else None


def trained(backbone: Backbone | None = None, size: int = 8) -> Trained:
    torch.manual_seed(0)
    backbone = backbone or TinyBackbone()
    card = BackboneCard(
        {"name": "tiny"}, 3, size, 6, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "simclr", "elsewhere", 7, 0.5, "0"
    )
    return Trained(backbone.eval(), card, None, "abc")


class PlainSubject(Subject):
    """Given features instead of computed ones; notes which parts were read."""

    def __init__(self, train: FeatureSet, test: FeatureSet, classes: int, seed: int = 0) -> None:
        self.parts = {"train": train, "eval": test}
        self.classes, self.seed, self.device = classes, seed, torch.device("cpu")
        self.read: list[str] = []
        self.decided: dict[str, object] | None = None
        wide = torch.arange(classes)
        self.data = {"train": InMemory(wide, classes), "eval": InMemory(wide, classes, split="test")}

    def features(self, part):
        self.read.append(part)
        return self.parts[part]

    def dataset(self, part):
        return self.data[part]

    def decide(self, choice):
        self.decided, self.read_at_decision = dict(choice), list(self.read)

    def normalize(self, images):
        return images


def clusters(count: int, classes: int, dim: int = 5, seed: int = 0, spread: float = 0.8) -> FeatureSet:
    """Features around one center per class, far from 0 in one dimension."""
    g = torch.Generator().manual_seed(100)
    centers = torch.randn(classes, dim, generator=g)
    g.manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    features = centers[labels] + spread * torch.randn(count, dim, generator=g)
    features[:, 0] = features[:, 0] * 10 + 30
    return FeatureSet(features, labels)


class FakeRun(RunContext):
    """A run of 40 steps in 10 epochs that keeps what is logged."""

    def __init__(self, train: Dataset | None, test: Dataset | None, backbone: Backbone | None = None) -> None:
        self.directory, self.device, self.seed = Path("none"), torch.device("cpu"), 0
        self.is_main, self.image_size = True, 8
        self.progress = Progress(0, 40, 4)
        self.parts = {"train": train, "eval": test}
        self.backbone = (backbone or TinyBackbone()).train()
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.scale = normalizer((0.5,) * 3, (0.25,) * 3, self.device)

    def at(self, step: int) -> FakeRun:
        self.progress = Progress(step, 40, 4)
        return self

    def encoder(self) -> Backbone:
        return self.backbone

    def labeled(self, part) -> Dataset | None:
        return self.parts[part]

    def normalize(self, images: Tensor) -> Tensor:
        return self.scale(images)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.logged.append((self.progress.step if step is None else step, dict(metrics)))
