"""What the transcriptions of the authors' training steps share: a network, optimizers and schedules written out.

Pure torch, nothing of sslcli: they are what sslcli is held to. Orders of operations are those of the authors' code,
which each class names; the words and the structure are ours.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Images of a step, steps of an epoch, epochs.
BATCH, PER_EPOCH, EPOCHS = 8, 5, 2
TOTAL = PER_EPOCH * EPOCHS


class Trunk(nn.Module):
    """Images of any size → 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def map(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images).mean(dim=(2, 3))


class NoShift(nn.BatchNorm1d):
    """Batch norm with a scale and without a shift (TensorFlow's `center=False`)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = None


def block(inputs: int, outputs: int, *, bias: bool = False) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=bias), nn.BatchNorm1d(outputs), nn.ReLU()]


class Authors(nn.Module, ABC):
    """One training run. Modules have sslcli's names; what sslcli leaves out (biases that a batch norm cancels) is 0."""

    #: Prefixes of copies that are updated within the forward pass, before they are used: sslcli does it at the end of
    #: the step before.
    early: tuple[str, ...] = ()

    def load(self, weights: dict[str, Tensor]) -> None:
        self.double().train()
        missing = self.load_state_dict({k: v for k, v in weights.items() if k in self.state_dict()}, strict=False)
        for name in missing.missing_keys:
            if not name.startswith("loss_norm."):
                assert name.endswith(".bias"), name
                nn.init.zeros_(self.get_parameter(name))

    @abstractmethod
    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        """Makes training step t, counted from 0; returns the loss."""

    def backward(self, loss: Tensor) -> None:
        """Leaves the gradients, as they are before anything is done to them, in `gradients`."""
        self.zero_grad(set_to_none=True)
        loss.backward()
        self.gradients = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}

    def found(self) -> dict[str, Tensor]:
        """The state after a step, by sslcli's names."""
        return {name: value.detach().clone() for name, value in self.state_dict().items()}


class Copy(nn.Module):
    """A backbone and a projector that follow others."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = copy.deepcopy(backbone), copy.deepcopy(projector)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.backbone(images))


@torch.no_grad()
def follow(slow: Iterable[Tensor], fast: Iterable[Tensor], m: float) -> None:
    for theirs, ours in zip(slow, fast, strict=True):
        theirs.copy_(theirs * m + ours * (1 - m))


class Optimizer:
    """Base: parameters, and a momentum for each, 0 at first."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float, momentum: float = 0.9) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.weight_decay, self.momentum = weight_decay, momentum
        self.buffers: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for p in self.parameters:
            if p.grad is not None:
                buffer = self.buffers.setdefault(id(p), torch.zeros_like(p))
                self.update(p, p.grad.clone(), buffer, lr)

    def update(self, p: nn.Parameter, d: Tensor, buffer: Tensor, lr: float) -> None:
        """torch.optim.SGD."""
        d += self.weight_decay * p
        buffer.mul_(self.momentum).add_(d)
        p -= lr * buffer


def trust(p: Tensor, d: Tensor, eta: float = 0.001) -> Tensor | float:
    return eta * p.norm() / d.norm() if p.norm() > 0 and d.norm() > 0 else 1.0


class LARS(Optimizer):
    """deepmind's byol/utils/optimizers.py, `LARS` of moco-v3, barlowtwins and vicreg; `biases`: factor of the learning
    rate of vectors (Barlow Twins)."""

    biases: float = 1.0

    def update(self, p: nn.Parameter, d: Tensor, buffer: Tensor, lr: float) -> None:
        if p.ndim > 1:
            d += self.weight_decay * p
            d *= trust(p, d)
        buffer.mul_(self.momentum).add_(d)
        p -= lr * (self.biases if p.ndim == 1 else 1.0) * buffer


class LARSOfSimCLR(Optimizer):
    """google-research/simclr's lars_optimizer.py with its classic momentum: the learning rate is inside."""

    def update(self, p: nn.Parameter, d: Tensor, buffer: Tensor, lr: float) -> None:
        scaled = lr
        if p.ndim > 1:  # its names without "batch_normalization" and "bias"
            d += self.weight_decay * p
            scaled = lr * trust(p, d)
        buffer.mul_(self.momentum).add_(scaled * d)
        p -= buffer


class LARC(Optimizer):
    """apex.parallel.LARC around SGD with clip=False, as in SwAV's main_swav.py: every parameter is adapted."""

    def update(self, p: nn.Parameter, d: Tensor, buffer: Tensor, lr: float) -> None:
        if p.norm() != 0 and d.norm() != 0:
            adaptive = 0.001 * p.norm() / (d.norm() + p.norm() * self.weight_decay + 1e-8)
            d = (d + self.weight_decay * p) * adaptive
        buffer.mul_(self.momentum).add_(d)
        p -= lr * buffer


class AdamW(Optimizer):
    """torch.optim.AdamW; `decayed` says whether vectors decay too, by `weight_decay` at the time of the step."""

    beta2 = 0.999

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float, decayed: bool = True) -> None:
        super().__init__(parameters, weight_decay)
        self.squares: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}
        self.decay_vectors = decayed

    def update(self, p: nn.Parameter, d: Tensor, buffer: Tensor, lr: float) -> None:
        if p.ndim > 1 or self.decay_vectors:
            p *= 1 - lr * self.weight_decay
        count = self.counts[id(p)] = self.counts.get(id(p), 0) + 1
        square = self.squares.setdefault(id(p), torch.zeros_like(p))
        buffer.mul_(0.9).add_(d, alpha=0.1)
        square.mul_(self.beta2).add_(d * d, alpha=1 - self.beta2)
        p -= lr / (1 - 0.9**count) * buffer / ((square / (1 - self.beta2**count)).sqrt() + 1e-8)


def warm_cosine(base: float, t: int, warmup: int, final: float = 0.0) -> float:
    """adjust_learning_rate of moco-v3, barlowtwins and vicreg, `learning_schedule` of byol and simclr: linear to `base`
    at step `warmup`, then half a cosine to `final`·base."""
    if t < warmup:
        return base * t / warmup
    q = 0.5 * (1 + math.cos(math.pi * (t - warmup) / (TOTAL - warmup)))
    return base * q + base * final * (1 - q)


def by_epoch(base: float, t: int) -> float:
    """adjust_learning_rate of moco and simsiam, CosineAnnealingLR of untitled-ai: one value for an epoch."""
    return base * 0.5 * (1 + math.cos(math.pi * (t // PER_EPOCH) / EPOCHS))
