"""lightly's methods, put together from its heads, losses, transforms and utilities as in its own scripts.

Those are its examples in `examples/pytorch` and its ImageNet and CIFAR-10 benchmarks. Sizes and numbers are those of a
config of ours. Modules have our names (see `our_name`), so that weights can be exchanged. `parity_settings.DIFFERENCES`
says what is changed to have equal networks.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import lightly.loss as losses
import lightly.models.modules as heads
import lightly.models.utils as utils
import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.utils.scheduler import CosineWarmupScheduler, cosine_schedule
from torch import Tensor, nn

from sslcli.config.resolve import RunConfig

OPTIMIZERS = {"sgd": functools.partial(torch.optim.SGD, momentum=0.9), "adamw": torch.optim.AdamW}


class LightlyMethod(nn.Module):
    """A network with heads and a loss; `total` is the number of steps, `per_epoch` that of an epoch."""

    def __init__(self, backbone: nn.Module, options: Any, total: int, per_epoch: int) -> None:
        super().__init__()
        self.backbone, self.options, self.total, self.per_epoch = backbone, options, total, per_epoch
        self.copies: list[tuple[nn.Module, nn.Module]] = []
        self.build(options, backbone.spec.feature_dim)

    def build(self, options: Any, features: int) -> None:
        """Makes heads and losses."""
        raise NotImplementedError

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        raise NotImplementedError

    def trained(self) -> list[nn.Module]:
        """The modules that the optimizer is given."""
        return [module for name, module in self.named_children() if name not in ("momentum_encoder", "teacher")]

    def after_backward(self, step: int) -> None:
        """Changes gradients."""

    def encoder(self) -> nn.Module:
        """What is evaluated."""
        return self.backbone

    def copied(self, **modules: nn.Module) -> nn.ModuleDict:
        """Copies that follow the modules at the beginning of each step, by `follow`."""
        made = nn.ModuleDict({name: copy.deepcopy(module) for name, module in modules.items()})
        utils.deactivate_requires_grad(made)
        self.copies = [(module, made[name]) for name, module in modules.items()]
        return made

    def follow(self, step: int) -> None:
        """The last step of lightly's schedule has the last value; ours would have it one step later."""
        start, end = self.options.momentum, self.options.final_momentum
        momentum = start if end is None else cosine_schedule(step, self.total + 1, start, end)
        for online, slow in self.copies:
            utils.update_momentum(online, slow, momentum)


def pooled(backbone: nn.Module, images: Tensor) -> Tensor:
    """Returns the features (N, D) of images."""
    features: Tensor = backbone(images).pooled
    return features


class SimCLR(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        head = options.projector
        self.projector = heads.SimCLRProjectionHead(features, head.hidden_dim, head.output_dim, head.layers)
        self.projector.layers[-1].register_parameter("bias", None)
        self.criterion = losses.NTXentLoss(options.temperature)

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        return self.criterion(*self.projector(pooled(self.backbone, torch.cat(views))).chunk(2))


class BYOL(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        hidden, output = options.projector.hidden_dim, options.projector.output_dim
        self.projector = heads.BYOLProjectionHead(features, hidden, output)
        self.predictor = heads.BYOLPredictionHead(output, options.predictor.hidden_dim, output)
        self.momentum_encoder = self.copied(backbone=self.backbone, projector=self.projector)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        self.follow(step)
        p = [self.predictor(self.projector(pooled(self.backbone, x))) for x in views]
        with torch.no_grad():
            slow = self.momentum_encoder
            z = [slow["projector"](pooled(slow["backbone"], x)) for x in views]
        # With the constant of ‖p − z‖² = 2 − 2·cos, which its script leaves out.
        return 4 + 2 * (self.criterion(p[0], z[1]) + self.criterion(p[1], z[0]))


class SimSiam(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        hidden, output = options.projector.hidden_dim, options.projector.output_dim
        self.projector = heads.SimSiamProjectionHead(features, hidden, output)
        self.predictor = heads.SimSiamPredictionHead(output, options.predictor.hidden_dim, output)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        z = [self.projector(pooled(self.backbone, x)) for x in views]
        p = [self.predictor(each) for each in z]
        return 0.5 * (self.criterion(z[0].detach(), p[1]) + self.criterion(z[1].detach(), p[0]))


class MoCoV2(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        head = options.projector
        self.projector = heads.MoCoProjectionHead(features, head.hidden_dim or features, head.output_dim)
        self.momentum_encoder = self.copied(backbone=self.backbone, projector=self.projector)
        self.criterion = losses.NTXentLoss(options.temperature, (options.queue_size, head.output_dim))

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        self.follow(step)
        query = self.projector(pooled(self.backbone, views[0]))
        with torch.no_grad():
            images, order = utils.batch_shuffle(views[1])
            slow = self.momentum_encoder
            key = utils.batch_unshuffle(slow["projector"](pooled(slow["backbone"], images)), order)
        return self.criterion(query, key)


class SwAV(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        head = options.projector
        self.projector = heads.SwaVProjectionHead(features, head.hidden_dim, head.output_dim)
        self.prototypes = heads.SwaVPrototypes(head.output_dim, options.prototypes, options.frozen_steps)
        self.prototypes.heads[0].register_parameter("bias", None)
        self.criterion = losses.SwaVLoss(options.temperature, options.sinkhorn_iterations, options.epsilon)
        sizes = [(options.queue_size, head.output_dim)] * 2 if options.queue_size else []
        self.queues, self.queued = nn.ModuleList(map(MemoryBankModule, sizes)), 0

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        self.prototypes.normalize()
        z = nn.functional.normalize(self.projector(pooled(self.backbone, torch.cat(views))), dim=1, p=2).chunk(2)
        queued = None
        if self.queues and step >= round(self.options.queue_start_epoch * self.per_epoch):
            banks = [queue(each, update=True)[1].T for queue, each in zip(self.queues, z, strict=True)]
            if self.queued >= self.options.queue_size:  # full, as in its ImageNet script
                queued = [self.prototypes(bank, step) for bank in banks]
            self.queued += len(z[0])
        return self.criterion([self.prototypes(each, step) for each in z], [], queued).squeeze()


class DINO(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        head = options.head
        sizes = features, head.hidden_dim, head.bottleneck_dim, head.prototypes, head.norm == "batch"
        frozen = round(options.freeze_last_layer_epochs)
        self.head = heads.DINOProjectionHead(*sizes, frozen, head.norm_last_layer)
        slow = heads.DINOProjectionHead(*sizes, frozen, head.norm_last_layer)  # torch cannot copy a weight norm
        slow.load_state_dict(self.head.state_dict())
        self.teacher = self.copied(backbone=self.backbone)
        self.teacher["projector"] = slow
        utils.deactivate_requires_grad(slow)
        self.copies.append((self.head, slow))
        self.criterion = losses.DINOLoss(
            head.prototypes, options.teacher_temperature, options.teacher_temperature, 0, options.student_temperature,
            options.center_momentum,
        )  # fmt: skip

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        self.follow(step)
        images = torch.cat(views)
        with torch.no_grad():
            teacher = self.teacher["projector"](pooled(self.teacher["backbone"], images))
        student = self.head(pooled(self.backbone, images))
        return self.criterion(teacher.chunk(2), student.chunk(2), epoch=step // self.per_epoch)

    def after_backward(self, step: int) -> None:
        self.head.cancel_last_layer_gradients(step // self.per_epoch)

    def encoder(self) -> nn.Module:
        return self.teacher["backbone"]


class BarlowTwins(LightlyMethod):
    def build(self, options: Any, features: int) -> None:
        head = options.projector
        self.projector = heads.BarlowTwinsProjectionHead(features, head.hidden_dim, head.output_dim)
        self.projector.layers[-1].register_parameter("bias", None)
        self.criterion = self.make_criterion(options)

    def make_criterion(self, options: Any) -> nn.Module:
        return losses.BarlowTwinsLoss(options.lambda_)

    def loss(self, views: list[Tensor], step: int) -> Tensor:
        z = [self.projector(pooled(self.backbone, x)) for x in views]
        return getattr(self.options, "scale", 1.0) * self.criterion(*z)


class VICReg(BarlowTwins):
    def make_criterion(self, options: Any) -> nn.Module:
        return losses.VICRegLoss(options.invariance, options.variance, options.covariance, eps=options.epsilon)


CLASSES: dict[str, type[LightlyMethod]] = {
    "simclr": SimCLR, "byol": BYOL, "simsiam": SimSiam, "moco_v2": MoCoV2, "swav": SwAV, "dino": DINO,
    "barlow_twins": BarlowTwins, "vicreg": VICReg,
}  # fmt: skip


def our_name(name: str) -> str:
    """Returns our name of one of lightly's tensors."""
    if name.startswith(("head.layers.", "teacher.projector.layers.")):
        name = name.replace(".layers.", ".mlp.")
    elif not name.startswith("backbone.") and ".backbone." not in name:
        name = name.replace(".layers.", ".")
    return name.replace("prototypes.heads.0.", "prototypes.").replace(".weight_v", ".weight")


def optimizer_and_schedule(method: LightlyMethod, config: RunConfig) -> tuple[Any, Any]:
    """lightly's groups, its schedule, and torch's optimizer; its cosine ends a step after the last, as ours does."""
    options = config.optimizer.options
    decayed, others = utils.get_weight_decay_parameters(method.trained())
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[config.optimizer.name](groups, lr=options.lr, weight_decay=options.weight_decay)
    return optimizer, CosineWarmupScheduler(optimizer, method.per_epoch, method.total + 1, end_value=0.0)


def step(method: LightlyMethod, optimizer: Any, schedule: Any, views: list[Tensor], number: int) -> Tensor:
    """Makes a training step; returns the loss."""
    optimizer.zero_grad()
    loss = method.loss(views, number)
    loss.backward()
    method.after_backward(number)
    optimizer.step()
    schedule.step()
    return loss.detach()
