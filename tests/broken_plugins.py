"""Methods, datasets, and augmentations that break one rule each: what the conformance kit must find.

Each is a correct plugin with one thing replaced (`broken`), beside the words that the check must say.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from sslcli.augmentations.solarize import Solarize
from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, RootedOptions
from sslcli.contracts.method import MethodOptions, ParameterGroup, Step
from sslcli.contracts.views import Operation, Parameters, Preset
from sslcli.methods.simclr import SimCLR, SimCLROptions
from sslcli.testing.stand_ins import SmallBackbone, pixels


@dataclass
class Broken:
    """A class, the words (a regular expression) with which its check must fail, and options for the check."""

    cls: Any
    words: str
    options: dict[str, Any] | None = None


def broken(name: str, base: type, words: str, options: dict[str, Any] | None = None, **members: Any) -> Broken:
    """A subclass of a correct plugin in which `members` are replaced."""
    module = sys._getframe(1).f_globals  # classes must be found by name, for pickling
    about = {"__doc__": f"{base.__name__} with another {', '.join(members)}.", "__module__": module["__name__"]}
    cls = type(base)(name, (base,), {**about, **members})
    module[name] = cls
    return Broken(cls, words, options)


# Methods: SimCLR with another forward, recipe, ...


class UndocumentedOptions(MethodOptions):
    loud: bool = False


class LaxOptions(SimCLROptions):
    model_config = ConfigDict(**{**SimCLROptions.model_config, "extra": "ignore"})


class ForgottenOptions(SimCLROptions):
    legacy = {"temperatur": 1.0}


def changed_step(change: Any) -> Any:
    """A `forward` that returns SimCLR's step after a change."""

    def forward(self: Any, batch: Any) -> Step:
        step = SimCLR.forward(self, batch)
        change(self, step)
        return step

    return forward


def scaled(factor: Any) -> Any:
    return changed_step(lambda self, step: setattr(step, "loss", step.loss * factor(self)))


def count_steps(self: Any, carry: Any, progress: Any) -> None:
    self.steps += 1


def without_gradient(self: Any, batch: Any) -> Step:
    with torch.no_grad():
        features = self.backbone(batch.views[0].image).pooled
    return Step(self.projector(features).square().mean(), features=features)


def with_buffer(self: Any, *arguments: Any) -> None:
    SimCLR.__init__(self, *arguments)
    self.register_buffer("seen", torch.zeros(()))


SMALL = {"projector": {"hidden_dim": 16, "output_dim": 8}}


def defaults(**sections: dict[str, Any]) -> Any:
    return classmethod(lambda cls, options, spec: sections)


METHODS = [
    broken("Undocumented", SimCLR, "Options.loud has no docstring", Options=UndocumentedOptions),
    broken("Forgotten", SimCLR, "Options.legacy names temperatur, which is no option", SMALL, Options=ForgottenOptions),
    broken("Lax", SimCLR, "accepts unknown keys", SMALL, Options=LaxOptions),
    broken("Unresolvable", SimCLR, "recipe cannot be resolved: .*flop", SMALL,
           recipe=classmethod(lambda cls, options, size, spec: {"preset": "simclr", "flop": 0.5})),
    broken("FirstContract", SimCLR, "recipe failed: TypeError", SMALL,
           recipe=classmethod(lambda cls, options, size: {"preset": "simclr"})),
    broken("OddLocalViews", SimCLR, "views of 25 px; the backbone takes 16 or more, in multiples of 16", SMALL,
           recipe=classmethod(lambda cls, options, size, spec: [
               {"size": size}, {"size": size if size < 64 or not spec.patch_size else 25}])),
    broken("ThreeViews", SimCLR, "the recipe's number of views is 2, not 3", SMALL, view_count=3),
    broken("BadDefaults", SimCLR, "defaults: 'optimizer' is not valid: .*momemtum", SMALL,
           defaults=defaults(optimizer={"name": "sgd", "lr": 0.1, "momemtum": 0.9})),
    broken("BadSection", SimCLR, "defaults: there is no section 'optimiser'; it may have optimizer,", SMALL,
           defaults=defaults(optimiser={})),
    broken("NoSuchOption", SimCLR, "defaults: no backbone has the option 'positionz'", SMALL,
           defaults=defaults(backbone={"positionz": "sincos"})),
    broken("OtherWidth", SimCLR, "defaults: the options for the backbone 'resnet18' change its spec", SMALL,
           defaults=defaults(backbone={"width": 32})),
    broken("ReturnsLoss", SimCLR, "forward returns Tensor, not Step", SMALL,
           forward=lambda self, batch: SimCLR.forward(self, batch).loss),
    broken("VectorLoss", SimCLR, r"the loss is torch.float32 \(1,\), not torch.float32 \(\)", SMALL,
           forward=changed_step(lambda self, step: setattr(step, "loss", step.loss[None]))),
    broken("Detached", SimCLR, "no gradient reaches backbone.layers.0.weight", SMALL, forward=without_gradient),
    broken("OtherEncoder", SimCLR, r"encoder\(\) must be a Backbone within the method", SMALL,
           encoder=lambda self: SmallBackbone(3, 16)),
    broken("Attached", SimCLR, "'again' must be a detached 0-dim tensor", SMALL,
           forward=changed_step(lambda self, step: step.metrics.update(again=step.loss * 2))),
    broken("AttachedCarry", SimCLR, "carry.'keys'. must be detached", SMALL,
           forward=changed_step(lambda self, step: step.carry.update(keys=step.loss * 2))),
    broken("AllFeatures", SimCLR, r"the shape of Step.features is \(16, 16\), not \(8, 16\)", SMALL,
           forward=changed_step(lambda self, step: setattr(step, "features", step.features.repeat(2, 1)))),
    broken("CountsInForward", SimCLR, "forward changes 'seen'; state changes in after_step", SMALL,
           __init__=with_buffer, forward=changed_step(lambda self, step: self.seen.add_(1))),
    broken("Forgets", SimCLR, "a resumed run has other losses; is there state", SMALL, steps=0, after_step=count_steps,
           forward=scaled(lambda self: 1 + self.steps)),
    broken("Diverges", SimCLR, "the loss of step 3 is nan", SMALL, steps=0, after_step=count_steps,
           forward=scaled(lambda self: 1 if self.steps < 2 else float("nan"))),
    broken("LeavesOut", SimCLR, "parameter_groups: 'projector.* is left out", SMALL, parameter_groups=lambda self: [
        ParameterGroup(dict(self.backbone.named_parameters(prefix="backbone")))]),
    broken("FreezesNothing", SimCLR, "frozen names what is not a module of it", SMALL, frozen=("teacher",)),
    broken("TrainsFrozen", SimCLR, "projector is frozen, but in train", SMALL, frozen=("projector",),
           train=lambda self, mode=True: nn.Module.train(self, mode)),
    broken("ChangesFrozen", SimCLR, "'projector.*' is frozen, but training changes it", SMALL, frozen=("projector",),
           after_step=lambda self, carry, progress: next(self.projector.parameters()).mul_(1.1)),
    broken("OwnRandomness", SimCLR, "equal seeds give different losses", SMALL,
           forward=scaled(lambda self: 1 + random.random())),
]  # fmt: skip


# Datasets


class Pictures(Dataset):
    """A correct dataset of 24 images."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.pixels, self.labels = pixels(24, 3, 8, 8), torch.arange(24) % 3
        self.info = DataInfo("pictures", 3, (8, 8), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))
        self.finish()

    def finish(self) -> None: ...

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> Tensor:
        return self.pixels[index]

    def images(self) -> Tensor | None:
        return self.pixels


class OneSplit(DatasetOptions):
    """Allows one split."""

    split: Literal["train"] = "train"
    """Only this."""


def first_ones(self: Any) -> None:
    order = self.labels.argsort(stable=True)[: self.options.limit]
    self.pixels, self.labels = self.pixels[order], self.labels[order]


DATASETS = [
    broken("FloatImages", Pictures, r"image\(0\) is torch.float32 \(3, 8, 8\), not torch.uint8",
           image=lambda self, i: self.pixels[i] / 255),
    broken("ArrayImages", Pictures, r"image\(0\) is ndarray, not torch.uint8",
           image=lambda self, i: self.pixels[i].numpy()),
    broken("OtherImages", Pictures, r"images\(\)\[0\] is not image\(0\)", images=lambda self: self.pixels.flip(0)),
    broken("FirstOnes", Pictures, "does not keep the proportion of each class", finish=first_ones),
    broken("TooManyLabels", Pictures, "labels go to 3, but there are 3 classes",
           finish=lambda self: setattr(self, "labels", self.labels + 1)),
    broken("Unpicklable", Pictures, "cannot be pickled",
           finish=lambda self: setattr(self, "transform", lambda image: image)),
    broken("Flickering", Pictures, r"image\(0\) differs when it is read again", images=lambda self: None,
           image=lambda self, i: torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)),
    broken("TooSmall", Pictures, "no side may fall below 4",
           image_for=lambda self, i, wanted: self.pixels[i] if wanted is None else self.pixels[i][:, :2, :2]),
    broken("AnyRoot", Pictures, "one line that names the folder", Options=RootedOptions),
    broken("OwnNormalization", Pictures, "does not normalize with the options mean and std",
           open=classmethod(lambda cls, options: cls(options))),
    broken("UnknownSplit", Pictures, "rejects the split 'test'", Options=OneSplit, splits=("train", "test")),
]  # fmt: skip


# View operations and presets


class Dim(Operation):
    """A correct operation: darkens each sample by a random factor."""

    draws = 1

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"factor": uniform.float().view(-1, 1, 1, 1)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images * parameters["factor"]


class TopLeft(Operation):
    """A correct geometric operation: the top left corner."""

    geometric = True

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images[..., : self.size, : self.size].float() / 255

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        return image[..., : self.size, : self.size]


def views(function: Any) -> Any:
    return classmethod(lambda cls, options, size: function())


def other_draws(self: Any, uniform: Tensor, sizes: Tensor) -> Parameters:
    torch.rand(1)
    return Dim.parameters(self, uniform, sizes)


OPERATIONS = [
    broken("InPlace", Dim, "changes its input 'images'", apply=lambda self, images, p: images.mul_(p["factor"])),
    broken("OneDraw", Dim, "each sample needs its own random numbers",
           parameters=lambda self, uniform, sizes: {"factor": torch.full((len(uniform), 1, 1, 1), 0.5)}),
    broken("RankedDraws", Dim, "'factor' depends on the others in the batch",
           parameters=lambda self, uniform, sizes: {"factor": (uniform / uniform.max()).float().view(-1, 1, 1, 1)}),
    broken("OwnDraws", Dim, "draws from torch's generator", parameters=other_draws),
    broken("BatchMean", Dim, "a sample depends on the others in its batch",
           apply=lambda self, images, p: (images * p["factor"] + images.mean(dim=0)) / 2),
    broken("TooBright", Dim, r"not in \[0, 1\]", apply=lambda self, images, p: images + p["factor"]),
    broken("SmallerView", Dim, r"apply is .*, not torch.float32 \(64, 1, 16, 16\)",
           apply=lambda self, images, p: (images * p["factor"])[..., 1:]),
    broken("ColorOnly", Dim, "not torch.float32|fails on images with 4 channels",
           apply=lambda self, images, p: images * p["factor"] * torch.ones(1, 3, 1, 1)),
    broken("BottomRight", TopLeft, "apply_one differs from apply by up to",
           apply_one=lambda self, image, p: image[..., -self.size :, -self.size :]),
    broken("SharedThreshold", Solarize, "apply reads an option in `drawn`.*threshold", drawn=frozenset({"threshold"})),
    broken("DrawnNothing", Dim, "drawn names p, which is not an option", drawn=frozenset({"p"})),
    broken("NoSide", Dim, "source_side must return None", source_side=lambda self: 8),
]  # fmt: skip
PRESETS = [
    broken("NoViews", Preset, "must return a list of views", views=views(list)),
    broken("TypoViews", Preset, "cannot be resolved: .*flipp", views=views(lambda: [{"count": 2, "flipp": 0.5}])),
    broken("RandomViews", Preset, "a different list in each call", views=views(lambda: [{"flip": random.random()}])),
]
