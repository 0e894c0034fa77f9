"""Plugins that break one promise each; what the conformance kit must find."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone, BackboneProvider, BackboneSpec, Features
from sslcli.contracts.callback import Callback, Outcome, RunContext
from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions, RootedOptions
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.contracts.export import Exported, Exporter, Trained
from sslcli.contracts.method import Batch, MethodOptions, ParameterGroup, Step
from sslcli.contracts.optimizer import OptimizerPlugin, Schedule
from sslcli.contracts.options import Options
from sslcli.contracts.views import Operation, Parameters, Preset
from sslcli.exporters.backbone.exporter import BackboneExporter
from sslcli.methods.simclr import SimCLR, SimCLROptions
from sslcli.testing.stand_ins import SmallBackbone, pixels

# Methods


class UndocumentedOptions(MethodOptions):
    loud: bool = False


class Undocumented(SimCLR):
    """Has an option without help."""

    Options = UndocumentedOptions


class LaxOptions(SimCLROptions):
    model_config = ConfigDict(**{**SimCLROptions.model_config, "extra": "ignore"})


class Lax(SimCLR):
    """Takes any option."""

    Options = LaxOptions


class Unresolvable(SimCLR):
    """Asks for views that there are not."""

    @classmethod
    def recipe(cls, options: Any, image_size: int) -> dict[str, Any]:
        return {"preset": "simclr", "flop": 0.5}


class ThreeViews(SimCLR):
    """Asks for another number of views than it needs."""

    view_count = 3


class BadDefaults(SimCLR):
    """Its paper's optimizer has a typo."""

    defaults = {"optimizer": {"name": "sgd", "lr": 0.1, "momemtum": 0.9}}


class Detached(SimCLR):
    """Trains the projector alone."""

    def forward(self, batch: Batch) -> Step:
        with torch.no_grad():
            features = self.backbone(batch.views[0].image).pooled
        return Step(self.projector(features).square().mean(), features=features)


class Attached(SimCLR):
    """Logs a metric with its graph."""

    def forward(self, batch: Batch) -> Step:
        step = super().forward(batch)
        step.metrics["loss_again"] = step.loss * 2
        return step


class CountsInForward(SimCLR):
    """Changes its state in `forward`."""

    seen: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: Batch) -> Step:
        self.seen += 1
        return super().forward(batch)


class Forgets(SimCLR):
    """Keeps state in a plain attribute."""

    steps = 0

    def forward(self, batch: Batch) -> Step:
        step = super().forward(batch)
        step.loss = step.loss * (1 + self.steps)
        return step

    def after_step(self, carry: Any, progress: Any) -> None:
        self.steps += 1


class LeavesOut(SimCLR):
    """Leaves parameters out of its groups."""

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(dict(self.backbone.named_parameters(prefix="backbone")))]


class OwnChance(SimCLR):
    """Draws from a generator that nobody seeds."""

    def forward(self, batch: Batch) -> Step:
        step = super().forward(batch)
        step.loss = step.loss * (1 + random.random())
        return step


# Backbones


class WrongDim(SmallBackbone):
    """Says that it has more features than it has."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels, dim)
        self.spec = BackboneSpec(dim + 1, channels)


class AlwaysDrops(SmallBackbone):
    """Drops features in `eval()` too."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(F.dropout(super().forward(x, mask).pooled, training=True))


class BatchNormInEval(SmallBackbone):
    """Normalizes by the batch in `eval()` too."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        pooled = super().forward(x, mask).pooled
        return Features(pooled - pooled.mean(dim=0))


class TakesMask(SmallBackbone):
    """Takes a mask and ignores it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return super().forward(x)


class OwnSeed(SmallBackbone):
    """Makes the same weights in every run."""

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> SmallBackbone:
        torch.manual_seed(0)
        return cls(channels, 16)


class ImportsNothing(SmallBackbone):
    """Exports its weights and does not take them back."""

    def import_state(self, state: dict[str, Tensor]) -> None:
        return


class ThreeChannels(SmallBackbone):
    """Builds itself for three channels whatever it is asked."""

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> SmallBackbone:
        return cls(3, 16)


class AnyName(BackboneProvider):
    """Has a backbone for every name."""

    @classmethod
    def names(cls) -> list[str]:
        return ["small"]

    @classmethod
    def get(cls, name: str) -> type[Backbone]:
        return SmallBackbone


# Data sets


class Pictures(Dataset):
    """A healthy one, to break."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.pixels, self.labels = pixels(24, 3, 8, 8), torch.arange(24) % 3
        self.info = DataInfo("pictures", 3, (8, 8), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"))

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> Tensor:
        return self.pixels[index]

    def images(self) -> Tensor | None:
        return self.pixels


class FloatImages(Pictures):
    """Returns floats."""

    def image(self, index: int) -> Tensor:
        return self.pixels[index] / 255


class OtherImages(Pictures):
    """Has another order in `images()`."""

    def images(self) -> Tensor:
        return self.pixels.flip(0)


class FirstOnes(Pictures):
    """Takes the first ones of the first classes for `limit`."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        order = self.labels.argsort(stable=True)[: options.limit]
        self.pixels, self.labels = self.pixels[order], self.labels[order]


class TooManyLabels(Pictures):
    """Has a label without a class."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.labels = self.labels + 1


class Unpicklable(Pictures):
    """Holds what cannot be sent to a worker."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.transform = lambda image: image


class Flickering(Pictures):
    """Is another one each time it is read."""

    def image(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)

    def images(self) -> None:
        return None


class TooSmall(Pictures):
    """Makes images smaller than they are wanted."""

    def image_for(self, index: int, wanted: int | None) -> Tensor:
        return self.image(index) if wanted is None else self.image(index)[:, :2, :2]


class AnyRoot(Pictures):
    """Does not look whether the data are there."""

    Options = RootedOptions


class UnknownSplit(Pictures):
    """Names a split that its options refuse."""

    class Options(DatasetOptions):
        """Knows one split."""

        split: Literal["train"] = "train"
        """Only this."""

    splits = ("train", "test")


# View operations and presets


class Dim(Operation):
    """A healthy one, to break: darkens each sample by a draw of its own."""

    draws = 1

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"factor": uniform[:, 0].float()}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images * parameters["factor"].view(-1, 1, 1, 1)


class InPlace(Dim):
    """Changes the images that it was given."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images.mul_(parameters["factor"].view(-1, 1, 1, 1))


class OneDraw(Dim):
    """Draws once for all samples."""

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"factor": torch.full((len(uniform),), 0.5)}


class RankedDraws(Dim):
    """A sample's parameters depend on the others."""

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {"factor": (uniform[:, 0] / uniform.max()).float()}


class OwnDraws(Dim):
    """Draws from torch's generator."""

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        torch.rand(1)
        return super().parameters(uniform, sizes)


class BatchMean(Dim):
    """A sample's result depends on the others."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return (super().apply(images, parameters) + images.mean(dim=0)) / 2


class TooBright(Dim):
    """Leaves the range."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images + parameters["factor"].view(-1, 1, 1, 1)


class SmallerView(Dim):
    """Returns another size."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return super().apply(images, parameters)[..., 1:]


class ColorOnly(Dim):
    """Needs three channels and does not say so."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return super().apply(images, parameters) * torch.ones(1, 3, 1, 1)


class TopLeft(Operation):
    """A geometric one whose way for workers is another."""

    geometric = True

    def parameters(self, uniform: Tensor, sizes: Tensor) -> Parameters:
        return {}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return images[..., : self.size, : self.size].float() / 255

    def apply_one(self, image: Tensor, parameters: Parameters) -> Tensor:
        return image[..., -self.size :, -self.size :]


class NoSide(Dim):
    """Says how large sources must be although it never sees them."""

    def source_side(self) -> int:
        return 8


class NoViews(Preset):
    """Is empty."""

    @classmethod
    def views(cls, options: Any, size: int) -> list[dict[str, Any]]:
        return []


class TypoViews(Preset):
    """Has a typo."""

    @classmethod
    def views(cls, options: Any, size: int) -> list[dict[str, Any]]:
        return [{"count": 2, "flipp": 0.5}]


class RandomViews(Preset):
    """Rolls dice."""

    @classmethod
    def views(cls, options: Any, size: int) -> list[dict[str, Any]]:
        return [{"count": 2, "flip": random.random()}]


# Optimizers and schedules


class Plain(torch.optim.Optimizer):
    """Plain gradient descent, with hooks to break."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.steps = 0

    def rate(self, group: dict[str, Any]) -> float:
        return group["lr"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad + group["weight_decay"] * parameter, self.rate(group))

    def move(self, parameter: Tensor, direction: Tensor, lr: float) -> None:
        parameter.sub_(lr * direction)


class Healthy(OptimizerPlugin):
    """A healthy one, to break."""

    kind: type[Plain] = Plain

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: Any) -> torch.optim.Optimizer:
        return cls.kind(groups, options.lr)


class DropsKeys(Healthy):
    """Passes on what torch knows alone."""

    @classmethod
    def build(cls, groups: list[dict[str, Any]], options: Any) -> torch.optim.Optimizer:
        known = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]
        return Plain(known, options.lr)


class _OwnRate(Plain):
    def rate(self, group: dict[str, Any]) -> float:
        return 0.01


class OwnRate(Healthy):
    """Ignores the learning rate in the groups."""

    kind = _OwnRate


class _OwnCount(Plain):
    def move(self, parameter: Tensor, direction: Tensor, lr: float) -> None:
        super().move(parameter, direction, lr / self.steps)


class OwnCount(Healthy):
    """Counts steps where no checkpoint sees it."""

    kind = _OwnCount


class _DividesByNorm(Plain):
    def move(self, parameter: Tensor, direction: Tensor, lr: float) -> None:
        super().move(parameter, direction / direction.norm(), lr)


class DividesByNorm(Healthy):
    """Divides by a norm that can be 0."""

    kind = _DividesByNorm


class _DecaysAll(Plain):
    def move(self, parameter: Tensor, direction: Tensor, lr: float) -> None:
        super().move(parameter, direction + 0.1 * parameter, lr)


class DecaysAll(Healthy):
    """Decays what is excluded from decay."""

    kind = _DecaysAll


class _FixedDecay(Plain):
    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, lr)
        self.decays = [group["weight_decay"] for group in self.param_groups]

    def step(self, closure: None = None) -> None:
        for group, decay in zip(self.param_groups, self.decays, strict=True):
            group["weight_decay"] = decay
        super().step()


class FixedDecay(Healthy):
    """Keeps the weight decay that it was built with."""

    kind = _FixedDecay


class _DecaysFrozen(Plain):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is None):
            parameter.mul_(0.99)
        super().step()


class DecaysFrozen(Healthy):
    """Decays what has no gradient."""

    kind = _DecaysFrozen


class _StacksNorms(Plain):
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            torch.stack([parameter.grad.norm() for parameter in group["params"] if parameter.grad is not None])
        super().step()


class StacksNorms(Healthy):
    """Fails where a whole group has no gradient."""

    kind = _StacksNorms


class Countdown(Schedule):
    """Counts its calls instead of reading the step."""

    calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return self.base / self.calls


class BelowZero(Schedule):
    """Ends below 0."""

    def __call__(self, step: int) -> float:
        return self.base * (1 - 2 * step / self.total_steps)


class Overshoots(Schedule):
    """Rises above its base."""

    def __call__(self, step: int) -> float:
        return self.base * (1 + step)


# Evaluators and exporters


class Judge(Evaluator):
    """A healthy one, to break."""

    chooses = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        labels = subject.features("eval").labels
        assert labels is not None
        return EvaluationResult({"top1": float((labels == 0).float().mean())}, subject.describe())


class Trains(Judge):
    """Leaves the backbone in training mode, with other statistics."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        subject.backbone.train()(torch.randn(4, 3, 16, 16))
        return super().evaluate(subject)


class Dice(Judge):
    """Is another one each time."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        return EvaluationResult({"top1": random.random()}, super().evaluate(subject).protocol)


class Percent(Judge):
    """Counts in percent."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        result = super().evaluate(subject)
        return EvaluationResult({"top1": 100 * result.metrics["top1"]}, result.protocol)


class Silent(Judge):
    """Does not say what it did."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        return EvaluationResult(super().evaluate(subject).metrics, {})


class Peeks(Judge):
    """Takes the better of two rates by what they reach on the images that it is judged on."""

    chooses = True


class Centers(Judge):
    """Works in the features that others share."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        subject.features("eval").features.sub_(1)
        return super().evaluate(subject)


class Unfreezes(Judge):
    """Lets gradients into the backbone and leaves it so."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        subject.backbone.requires_grad_(True)
        return super().evaluate(subject)


class SaysUnseeded(Judge):
    """Draws although it says that it does not."""

    seeded = False

    def evaluate(self, subject: Subject) -> EvaluationResult:
        return EvaluationResult({"draw": float(subject.seed)}, super().evaluate(subject).protocol)


class NeedsNoLabels(Judge):
    """Judges without labels although it says that it needs them."""

    def evaluate(self, subject: Subject) -> EvaluationResult:
        return EvaluationResult({"images": float(len(subject.dataset("eval")))}, subject.describe())


class BadLines(BackboneExporter):
    """Its lines do not work."""

    def export(self, trained: Trained, path: Path) -> Exported:
        return Exported(super().export(trained, path).path, "import no_such_module_at_all")


class OtherWeights(BackboneExporter):
    """Writes another backbone."""

    def export(self, trained: Trained, path: Path) -> Exported:
        other = type(trained.backbone).build(trained.backbone.options, 3, 16).eval()
        return super().export(Trained(other, trained.card, None), path)


class Nowhere(Exporter):
    """Writes nothing."""

    def export(self, trained: Trained, path: Path) -> Exported:
        return Exported(path, "")


class Traceback(Exporter):
    """Leaves the user with a traceback."""

    def export(self, trained: Trained, path: Path) -> Exported:
        path.write_bytes(b"weights")
        return Exported(path, "")


# Callbacks


class EvalMode(Callback):
    """Leaves the encoder in `eval()`."""

    def on_epoch(self, context: RunContext) -> None:
        context.encoder().eval()


class UpdatesStatistics(Callback):
    """Shows the encoder images in training mode."""

    def on_step(self, context: RunContext) -> None:
        with torch.no_grad():
            context.encoder()(torch.randn(4, 3, 16, 16))


class Forgetful(Callback):
    """Does not take its state back."""

    steps = 0

    def on_step(self, context: RunContext) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor | int | float | str]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return


class NeedsStart(Callback):
    """Cannot end before it began."""

    def on_start(self, context: RunContext) -> None:
        self.layers = nn.ReLU()

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        del self.layers


class WritesEverywhere(Callback):
    """Writes on every process."""

    def on_end(self, context: RunContext, outcome: Outcome) -> None:
        (context.directory / "end.txt").write_text(outcome)


class NeedsLoss(Callback):
    """Thinks that every log line is the loop's."""

    def on_log(self, context: RunContext, record: Mapping[str, float | int]) -> None:
        record["loss"]


class NoDocstring(Callback):
    __doc__ = None


class ListState(Callback):
    """Keeps a list."""

    Options = Options

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [1, 2]}
