"""How many linear classifiers are updated at once: plain SGD in a few operations for all, any other optimizer head by
head. Twenty groups of parameters cost torch's SGD far more time than their arithmetic, hence the first way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.optimizer import Role
from sslcli.optimizers.groups import set_rates, split_by_role, weight_decay_schedule
from sslcli.optimizers.sgd import SGD, SGDOptions

from ..probes.training import Training

_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias"}


class Update(ABC):
    """Updates the heads in place by their gradients, which are in `gradients` when a step is made.

    Args:
        parameters: `weight` (V, R, C, D) and `bias` (V, R, C).
        gradients: of the same names and shapes.
        rates: R learning rates.
        training: optimizer and schedule.
        steps: in an epoch.

    Raises:
        UserError: the schedule's options do not fit the number of steps.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        gradients: dict[str, Tensor],
        rates: Sequence[float],
        training: Training,
        steps: int,
    ) -> None:
        self.parameters, self.gradients, self.steps = parameters, gradients, steps
        self.schedules = [training.schedule_for(rate, steps) for rate in rates]
        self.decay = weight_decay_schedule(training.optimizer_for(rates[0])[1], training.epochs * steps)
        self._prepare(rates, training)

    def lr(self, step: int) -> list[float]:
        """Returns the learning rate of each of the R."""
        return [schedule(step) for schedule in self.schedules]

    @abstractmethod
    def _prepare(self, rates: Sequence[float], training: Training) -> None: ...

    @abstractmethod
    def step(self, step: int) -> None:
        """Makes step `step`, counted from 0."""


class JointSGD(Update):
    """torch's SGD with a learning rate for each head."""

    def _prepare(self, rates: Sequence[float], training: Training) -> None:
        options = training.optimizer_for(rates[0])[1]
        assert isinstance(options, SGDOptions)
        self.options = options
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}

    def step(self, step: int) -> None:
        options, index = self.options, step % self.steps
        if index == 0:  # an epoch's rates are copied to the device at once
            epoch = [self.lr(each) for each in range(step, step + self.steps)]
            self._epoch = torch.tensor(epoch, dtype=torch.float64).to(self.parameters["weight"])
        decay = options.weight_decay if self.decay is None else self.decay(step)
        for name, tensor in self.parameters.items():
            gradient, velocity = self.gradients[name], self.velocity[name]
            if decay and _ROLES[name] not in options.exclude:
                gradient.add_(tensor, alpha=decay)
            velocity.mul_(options.momentum).add_(gradient)
            change = gradient.add_(velocity, alpha=options.momentum) if options.nesterov else velocity
            tensor.addcmul_(change, self._epoch[index].view(-1, *[1] * (tensor.ndim - 2)), value=-1)


class HeadByHead(Update):
    """Any optimizer, one for each rate. Each head's weight and bias are parameters of their own, views of the memory of
    all, so that a trust ratio is a head's own."""

    def _prepare(self, rates: Sequence[float], training: Training) -> None:
        self.optimizers: list[torch.optim.Optimizer] = []
        for r, rate in enumerate(rates):
            cls, options = training.optimizer_for(rate)
            groups = []
            for v in range(len(self.parameters["weight"])):
                own = {name: nn.Parameter(tensor[v, r]) for name, tensor in self.parameters.items()}
                for name, parameter in own.items():
                    parameter.grad = self.gradients[name][v, r]
                groups += split_by_role(ParameterGroup(own, f"scaling {v}"), _ROLES, options)
            self.optimizers.append(cls.build(groups, options))

    def step(self, step: int) -> None:
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            set_rates(optimizer, step, schedule, self.decay)
            optimizer.step()


def update_kind(training: Training) -> type[Update]:
    """Returns the faster of the two ways that are possible with this optimizer."""
    return JointSGD if training.optimizer_for(1.0)[0] is SGD else HeadByHead
