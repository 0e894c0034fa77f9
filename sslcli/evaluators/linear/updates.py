"""How many linear classifiers are updated at once: plain SGD in a few operations for all, any other optimizer head by
head. Twenty groups of parameters cost torch's SGD far more time than their arithmetic, hence the first way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.optimizer import Role
from sslcli.optimizers.groups import set_lr, set_weight_decay, split_by_role, weight_decay_schedule
from sslcli.optimizers.sgd import SGD, SGDOptions

from ..probes.training import Training

_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias"}


class Update(ABC):
    """Changes weights by the gradients that lie in `slopes` when a step is made.

    Args:
        weight: (V, R, C, D).
        bias: (V, R, C).
        slopes: their gradients, of the same shapes.
        rates: R learning rates.
        training: optimizer and schedule.
        steps: in an epoch.

    Raises:
        UserError: the schedule's options do not fit the number of steps.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        slopes: tuple[Tensor, Tensor],
        rates: Sequence[float],
        training: Training,
        steps: int,
    ) -> None:
        self.tensors, self.slopes = {"weight": weight, "bias": bias}, dict(zip(_ROLES, slopes, strict=True))
        self.rates, self.training, self.steps = rates, training, steps
        self.schedules = [training.schedule_for(rate, steps) for rate in rates]
        self.options = training.optimizer_for(rates[0])[1]
        self.decay = weight_decay_schedule(self.options, training.epochs * steps)

    def lr(self, step: int) -> list[float]:
        """Returns the learning rate of each of the R."""
        return [schedule(step) for schedule in self.schedules]

    @abstractmethod
    def step(self, step: int) -> None:
        """Makes step `step`, counted from 0."""


class JointSGD(Update):
    """torch's SGD with a learning rate for each head."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        assert isinstance(self.options, SGDOptions)
        self.momentum, self.nesterov = self.options.momentum, self.options.nesterov
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.decayed = {name: role not in self.options.exclude for name, role in _ROLES.items()}

    def step(self, step: int) -> None:
        place = step % self.steps
        if place == 0:  # an epoch's rates travel together
            epoch = [self.lr(each) for each in range(step, step + self.steps)]
            self._epoch = torch.tensor(epoch, dtype=torch.float64).to(self.tensors["weight"])
        decay = self.options.weight_decay if self.decay is None else self.decay(step)
        for name, tensor in self.tensors.items():
            slope, velocity = self.slopes[name], self.velocity[name]
            if decay and self.decayed[name]:
                slope.add_(tensor, alpha=decay)
            velocity.mul_(self.momentum).add_(slope)
            change = slope.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
            tensor.addcmul_(change, self._epoch[place].view(-1, *[1] * (tensor.ndim - 2)), value=-1)


class HeadByHead(Update):
    """Any optimizer, one for each rate, to which each head's weight and bias are parameters of their own: they lie in
    the memory of all, so that a trust ratio is a head's own."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.optimizers: list[torch.optim.Optimizer] = []
        for r, rate in enumerate(self.rates):
            cls, options = self.training.optimizer_for(rate)
            groups = []
            for v in range(len(self.tensors["weight"])):
                parameters = {name: nn.Parameter(tensor[v, r]) for name, tensor in self.tensors.items()}
                for name, parameter in parameters.items():
                    parameter.grad = self.slopes[name][v, r]
                groups += split_by_role(ParameterGroup(parameters, f"scaling {v}"), _ROLES, options)
            self.optimizers.append(cls.build(groups, options))

    def step(self, step: int) -> None:
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            set_lr(optimizer, schedule, step, schedule.base)
            if self.decay is not None:
                set_weight_decay(optimizer, self.decay, step)
            optimizer.step()


def update_for(
    weight: Tensor,
    bias: Tensor,
    slopes: tuple[Tensor, Tensor],
    rates: Sequence[float],
    training: Training,
    steps: int,
) -> Update:
    """Returns the faster way that there is for the optimizer; see `Update`."""
    kind = JointSGD if training.optimizer_for(rates[0])[0] is SGD else HeadByHead
    return kind(weight, bias, slopes, rates, training, steps)
