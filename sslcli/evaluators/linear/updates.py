"""How many linear classifiers are updated at once: plain SGD in a few operations for all, any other optimizer head by
head. Twenty groups of parameters cost torch's SGD far more time than their arithmetic, hence the first way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslcli.contracts.method import ParameterGroup
from sslcli.contracts.optimizer import Role
from sslcli.optimizers.groups import check_patterns, is_excluded, weight_decay_schedule
from sslcli.optimizers.sgd import SGD

from ..probes.training import ScheduledOptimizer, Training

Tensors = dict[str, Tensor]
Update = Callable[[int], None]
_ROLES: dict[str, Role] = {"weight": "weight", "bias": "bias"}


def make_update(
    parameters: Tensors, gradients: Tensors, rates: Sequence[float], training: Training, steps: int
) -> Update:
    """Returns a function of the step, counted from 0, that updates the heads in place by their gradients.

    Args:
        parameters: `weight` (V, R, C, D) and `bias` (V, R, C).
        gradients: of the same names and shapes; a step may overwrite them.
        rates: R learning rates.
        training: optimizer and schedule.
        steps: in an epoch.

    Raises:
        UserError: the schedule's options do not fit the number of steps.
    """
    if training.optimizer_for(1.0)[0] is SGD:
        return _joint_sgd(parameters, gradients, rates, training, steps)
    # Each head's weight and bias are parameters of their own, views of the memory of all, so that a trust ratio is a
    # head's own.
    optimizers = []
    for r, rate in enumerate(rates):
        groups = []
        for v in range(len(parameters["weight"])):
            own = {name: nn.Parameter(tensor[v, r]) for name, tensor in parameters.items()}
            for name, parameter in own.items():
                parameter.grad = gradients[name][v, r]
            groups.append(ParameterGroup(own, f"scaling {v}"))
        optimizers.append(ScheduledOptimizer(training, rate, steps, groups, _ROLES))

    def update(step: int) -> None:
        for each in optimizers:
            each.prepare(step)
            each.optimizer.step()

    return update


def _joint_sgd(
    parameters: Tensors, gradients: Tensors, rates: Sequence[float], training: Training, steps: int
) -> Update:
    """torch's SGD with a learning rate for each head."""
    options: Any = training.optimizer_for(rates[0])[1]
    check_patterns(parameters, options)
    schedules = [training.schedule_for(rate, steps) for rate in rates]
    decay_at = weight_decay_schedule(options, training.epochs * steps)
    velocities = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    lr = torch.empty(0)

    def update(step: int) -> None:
        nonlocal lr
        if step % steps == 0:  # an epoch's rates are copied to the device at once
            epoch = [[schedule(each) for schedule in schedules] for each in range(step, step + steps)]
            lr = torch.tensor(epoch, dtype=torch.float64).to(parameters["weight"])
        decay = options.weight_decay if decay_at is None else decay_at(step)
        for name, tensor in parameters.items():
            gradient, velocity = gradients[name], velocities[name]
            if decay and not is_excluded(name, _ROLES[name], options):
                gradient.add_(tensor, alpha=decay)
            velocity.mul_(options.momentum).add_(gradient)
            change = gradient.add_(velocity, alpha=options.momentum) if options.nesterov else velocity
            tensor.addcmul_(change, lr[step % steps].view(-1, *[1] * (tensor.ndim - 2)), value=-1)

    return update
