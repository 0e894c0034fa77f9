"""Small parts that checks run plugins with: a backbone, a dataset in memory, and a run for callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.callback import RunContext
from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, Part
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard, Trained
from sslcli.contracts.method import Progress
from sslcli.evaluation.extraction import normalizer
from sslcli.plugins import load
from sslcli.version import __version__

MEAN, STD = 0.5, 0.25
CLASSES = ("a", "b", "c", "d")
SPLITS: dict[Part, str] = {"train": "train", "eval": "test"}


class SmallBackbone(Backbone):
    """Two convolutions with batch norm; every weight has a gradient in the first step."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.spec = BackboneSpec(dim, channels, minimum_size=4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, dim, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(dim), nn.GELU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(dim), nn.GELU(),
        )  # fmt: skip

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> SmallBackbone:
        return cls(channels, dim=16)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
        layers: int = 1,
    ) -> Features:
        """Returns pooled features (N, 16) and the pixels of the last map as tokens; UserError for anything else."""
        if layers != 1 or any(each is not None for each in (mask, mask_token, keep)):
            raise UserError("backbone: that of the checks cannot leave out patches; pass one that can as `backbone`")
        last = self.layers(x)
        return Features(last.mean(dim=(2, 3)), last.flatten(2).transpose(1, 2), (last.shape[2], last.shape[3]))


#: The smallest vision transformer that a registered one can be.
SMALL_VIT = {"name": "vit_tiny", "patch_size": 4, "depth": 1}


def small_vit(image_size: int = 16) -> Backbone:
    """Returns a vision transformer with random weights: 192 features, of 4 × 4 patches."""
    cls: type[Backbone] = load("backbones", str(SMALL_VIT["name"]))
    return cls.build(cls.Options.parse({k: v for k, v in SMALL_VIT.items() if k != "name"}), 3, image_size)


def pixels(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Returns random uint8 images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def sizes_of(images: Tensor) -> Tensor:
    """Returns (N, 2): the height and width of each image of a batch."""
    return torch.tensor([images.shape[-2:]]).expand(len(images), 2)


class MemoryDataset(Dataset):
    """Random images whose mean color depends on the class."""

    splits = ("train", "test")

    def __init__(
        self, split: str = "train", count: int = 32, channels: int = 3, size: int = 16, labels: bool = True
    ) -> None:
        super().__init__(DatasetOptions(split=split))
        classes = torch.arange(count) % len(CLASSES)
        noise = pixels(count, channels, size, size, seed=self.splits.index(split))
        color = pixels(len(CLASSES), channels, 1, 1, seed=7)[classes]
        self._images = (noise // 2 + color // 2).to(torch.uint8)
        self.labels = classes if labels else None
        names = CLASSES if labels else None
        self.info = DataInfo("memory", channels, (size, size), (MEAN,) * channels, (STD,) * channels, names)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Tensor:
        return self._images[index]

    def images(self) -> Tensor:
        return self._images


def small_trained(image_size: int = 16) -> Trained:
    """Returns a registered backbone as if it had been trained: a narrow ResNet-18."""
    values = {"name": "resnet18", "stem": "small", "width": 4, "zero_init_residual": False}
    cls: type[Backbone] = load("backbones", "resnet18")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = cls.build(cls.Options.parse({k: v for k, v in values.items() if k != "name"}), 3, image_size)
        backbone(torch.randn(8, 3, image_size, image_size))  # so that batch statistics differ from a new one's
    card = BackboneCard(
        backbone=values, channels=3, image_size=image_size, feature_dim=backbone.spec.feature_dim, mean=(MEAN,) * 3,
        std=(STD,) * 3, method="simclr", dataset="memory", step=6, epoch=2.0, sslcli=__version__,
    )  # fmt: skip
    return Trained(backbone.eval(), card, None, "0" * 64)


class WatchedRun(RunContext):
    """A run of 6 steps in 2 epochs."""

    def __init__(self, directory: Path, *, labels: bool = True, is_main: bool = True) -> None:
        self.directory, self.device, self.seed = directory, torch.device("cpu"), 0
        self.is_main, self.image_size, self.last_step = is_main, 16, 6
        self.progress = Progress(0, 6, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._encoder = SmallBackbone(3, 16).train()
        self._parts = {part: MemoryDataset(split, labels=labels) for part, split in SPLITS.items()}
        self._normalize = normalizer((MEAN,) * 3, (STD,) * 3, self.device)
        self.classes = len(CLASSES) if labels else None

    def at(self, step: int) -> WatchedRun:
        self.progress = Progress(step, 6, 3)
        if step > 0:
            self.step_features = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            self.step_labels = None if self.classes is None else torch.arange(8) % self.classes
        return self

    def encoder(self) -> Backbone:
        return self._encoder

    def labeled(self, part: Part) -> Dataset | None:
        return self._parts[part]

    def normalize(self, images: Tensor) -> Tensor:
        return self._normalize(images)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Does nothing: no other callback listens."""
