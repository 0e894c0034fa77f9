"""SimCLR training steps of each tool, from the files to the updated weights, made the way its documentation has them.

All train the same backbone, ours, with a projector of the same size, SGD, and views of the same recipe; the data, the
pipeline and the loop are each tool's own. `DIFFERENCES` says what cannot be equal. A tool is imported when its steps
are made: `pip install 'sslcli[benchmark]'` installs lightly and lightly-train, `pip install stable-pretraining` the
third. None sends anything: lightly-train's events are turned off, and Lightning has no logger that does.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from others import lightly_train_arguments, lightly_views, stable_pretraining_views
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from views import MEAN, STD, our_views

from sslcli.config.resolve import RunConfig, load_config
from sslcli.contracts.backbone import Backbone
from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
DIFFERENCES = {
    "lightly": "one forward pass per view",
    "lightly_train": "reads CIFAR-10 from PNG files, since it takes files only; a warm-up of the learning rate",
    "stable_pretraining": "one forward pass per view",
}


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
        config: our config of it.
        size: side of the views in pixels.
        equal: what of ours is turned off or set where settings are equal.
    """

    config: str
    size: int
    equal: tuple[str, ...]


#: At 32 px our compiled views are kept where settings are equal: the backbone is eager, as that of the others is.
DATA = {
    "cifar10": Data("cifar10/simclr.yaml", 32, ("training.compile=views",)),
    "photographs": Data("images/simclr.yaml", 224, ("training.compile=none", "training.workers=2")),
}


@dataclass(frozen=True)
class Task:
    """A measurement in a process of its own; picklable.

    Attributes:
        tool: a key of `STEPS`.
        data: a key of `DATA`.
        root: our data set's folder.
        files: the same images as files, where the tool reads nothing else.
        width: of the ResNet-18.
        batch: images a step.
        workers: of the others' loaders.
        precision: fp32 or bf16, with contiguous and channels_last memory; None: the tool's defaults.
        warm_up: steps that do not count.
        steps: those that do.
    """

    tool: str
    data: str
    root: Path
    files: Path
    width: int
    batch: int
    workers: int
    precision: str | None
    warm_up: int
    steps: int

    def config(self) -> RunConfig:
        """Ours; also where the others take the backbone and the sizes of the projector from."""
        data = DATA[self.data]
        equal = (f"training.precision={self.precision}", f"training.channels_last={self.precision == 'bf16'}".lower())
        return load_config(
            CONFIGS / data.config,
            [
                f"data.root={self.root}", "backbone.name=resnet18", f"backbone.width={self.width}",
                f"training.batch_size={self.batch}", "optimizer={name: sgd, lr: 0.1, momentum: 0.9}",
                *((*equal, *data.equal) if self.precision else ()),
            ],
        )  # fmt: skip

    def network(self) -> tuple[Backbone, tuple[int, int, int, int]]:
        """Returns the backbone, and the projector's features, hidden and output dimensions and layers."""
        config = self.config()
        backbone = config.backbone.cls.build(config.backbone.options, 3, DATA[self.data].size)
        head, features = config.method.options.projector, backbone.spec.feature_dim
        backbone.to(memory_format=torch.channels_last if self.precision == "bf16" else torch.contiguous_format)
        return backbone, (features, head.hidden_dim or features, head.output_dim, head.layers)


class Enough(Exception):
    """All steps were made."""


class Clock:
    """Called after every update of an optimizer; raises Enough after the last step that counts.

    Args:
        warm_up: updates that do not count.
        steps: updates that do.
        wait: waits for the device.
    """

    def __init__(self, warm_up: int, steps: int, wait: Callable[[], None]) -> None:
        self.warm_up, self.steps, self.wait = warm_up, steps, wait
        self.made, self.began, self.seconds = 0, 0.0, 0.0

    def __call__(self, *_: Any) -> None:
        self.made += 1
        if self.made == self.warm_up:
            self.wait()
            self.began = time.perf_counter()
        if self.made == self.warm_up + self.steps:
            self.wait()
            self.seconds = time.perf_counter() - self.began
            raise Enough


def train_ours(task: Task, made: dict[str, Any]) -> None:
    session = build(task.config())
    session.source.prepare()
    loop = Loop(session, Context(session, RunDirectory(Path(tempfile.gettempdir()))), 0)
    training = session.config.training
    made |= training.model_dump(include={"precision", "channels_last", "compile"})
    made |= {"workers": training.workers, "source": type(session.source).__name__}
    try:
        while True:
            loop.step()
            if loop.context.progress.step % training.log_every == 0:
                loop.record()
    finally:
        session.source.close()


def train_lightly(task: Task, made: dict[str, Any]) -> None:
    """As in lightly's examples: its dataset, transform, head and loss, torch's loader, a plain loop."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from torchvision.datasets import CIFAR10

    device, size = _device(), DATA[task.data].size
    views = lightly_views(size, our_views(size)[1], MEAN, STD)
    if task.data == "cifar10":
        dataset = LightlyDataset.from_torch_dataset(CIFAR10(task.root), transform=views)
    else:
        dataset = LightlyDataset(str(task.root), transform=views)
    backbone, head = task.network()
    layout = torch.channels_last if task.precision == "bf16" else torch.contiguous_format
    model = nn.Sequential(Pooled(backbone), SimCLRProjectionHead(*head)).to(device)
    criterion = NTXentLoss(temperature=task.config().method.options.temperature)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=task.precision == "bf16")
    total = torch.zeros((), device=device)
    made |= {"precision": task.precision or "fp32", "channels_last": task.precision == "bf16", "workers": task.workers}
    for _ in itertools.count():
        for images, *_ in _loader(dataset, task):
            first, second = (view.to(device, memory_format=layout) for view in images)
            with autocast():
                loss = criterion(model(first), model(second))
            total += loss.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_lightly_train(task: Task, made: dict[str, Any]) -> None:
    """By its own command; precision and workers are its own without `task.precision`."""
    size = DATA[task.data].size
    arguments = lightly_train_arguments(size, our_views(size)[1], MEAN, STD)
    import lightly_train
    from lightly_train._commands import common_helpers, train_helpers

    backbone, (_, hidden, output, layers) = task.network()
    method = {"hidden_dim": hidden, "output_dim": output, "num_layers": layers}
    own: dict[str, Any] = {}
    if task.precision is not None:
        # By default it gives Lightning an object, with which bf16 on a CPU is CUDA's and aborts.
        own = {"precision": _PRECISION[task.precision], "num_workers": task.workers, "accelerator": _device().type}
    made |= {
        "precision": train_helpers.get_precision(own.get("precision", "auto")),
        "channels_last": task.precision == "bf16",
        "workers": common_helpers.get_num_workers(own.get("num_workers", "auto"), 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        lightly_train.pretrain(
            out=Path(folder) / "run", data=task.files, model=Wrapped(backbone), method="simclr", epochs=200,
            batch_size=task.batch, optim="sgd", transform_args=arguments,
            method_args={**method, "temperature": task.config().method.options.temperature}, **own,
        )  # fmt: skip


def train_stable_pretraining(task: Task, made: dict[str, Any]) -> None:
    """As in its README: its dataset, transforms, module, forward function and loss, Lightning's trainer."""
    import lightning
    import stable_pretraining as spt
    from stable_pretraining.forward import simclr
    from torchvision.datasets import CIFAR10, ImageFolder

    size = DATA[task.data].size
    views = stable_pretraining_views(size, our_views(size)[1], MEAN, STD)
    images = CIFAR10(task.root) if task.data == "cifar10" else ImageFolder(task.root)
    dataset = spt.data.FromTorchDataset(images, names=["image", "label"], transform=views)
    backbone, (features, hidden, output, layers) = task.network()
    module = spt.Module(
        backbone=Pooled(backbone), projector=spt.backbone.MLP(features, [hidden] * (layers - 1) + [output]),
        forward=simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=task.config().method.options.temperature),
        optim={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "scheduler": {"type": "CosineAnnealingLR"}},
    )  # fmt: skip
    precision = _PRECISION[task.precision or "fp32"]
    made |= {"precision": precision, "channels_last": task.precision == "bf16", "workers": task.workers}
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=200, precision=precision, logger=False, enable_checkpointing=False, default_root_dir=folder
        )
        trainer.fit(module, train_dataloaders=_loader(dataset, task))


#: Lightning's names.
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
STEPS: dict[str, Callable[[Task, dict[str, Any]], None]] = {
    "ours": train_ours,
    "lightly": train_lightly,
    "lightly_train": train_lightly_train,
    "stable_pretraining": train_stable_pretraining,
}


def measure(task: Task) -> dict[str, Any]:
    """Returns images per second, and how the steps were made, with each `auto` resolved where the tool says so."""
    made: dict[str, Any] = {"threads": torch.get_num_threads()}
    clock = Clock(task.warm_up, task.steps, torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
    handle = register_optimizer_step_post_hook(clock)
    try:
        STEPS[task.tool](task, made)
    except Enough:
        return {"images_per_second": task.steps * task.batch / clock.seconds, "made": made}
    finally:
        handle.remove()
    raise RuntimeError(f"{task.tool} ended after {clock.made} steps")


class Pooled(nn.Module):
    """Our backbone as a module that returns its pooled features (N, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).pooled


class Wrapped(Pooled):
    """Our backbone with the functions that lightly-train asks of a custom model."""

    def feature_dim(self) -> int:
        return self.backbone.spec.feature_dim

    def get_model(self) -> nn.Module:
        return self.backbone

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self(images)[:, :, None, None]}

    def forward_pool(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_features": features["features"]}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loader(dataset: Any, task: Task) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(
        dataset, batch_size=task.batch, shuffle=True, drop_last=True, num_workers=task.workers
    )
