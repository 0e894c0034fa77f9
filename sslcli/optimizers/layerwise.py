"""Base of LARS and LARC: multi-tensor SGD with momentum whose step for each layer depends on norms.

No step waits for the device: norms, ratios and their special cases stay tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

Tensors = list[Tensor] | tuple[Tensor, ...]


class LayerwiseSGD(torch.optim.Optimizer):
    """Base of optimizers that scale the step of each tensor; a subclass says how, and documents the arguments.

    Tensors of fewer than 2 dimensions are not scaled, unless their group has `exclude_1d: False`, nor are those of a
    group with `excluded: True`. Parameters whose gradient is None are skipped. State: `momentum_buffer` per parameter,
    created at once, so that a first step that the GradScaler skips or a parameter that is frozen at first makes no
    difference.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(f"lr must not be negative: {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1): {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative: {weight_decay}")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient must be positive: {trust_coefficient}")
        common = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, {**common, "excluded": False, **(defaults or {})})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, and the momentum buffers of its parameters."""
        super().add_param_group(param_group)
        self.buffers(self.param_groups[-1]["params"])

    def buffers(self, parameters: Tensors) -> list[Tensor]:
        """Returns the momentum buffer of each parameter; zeros if a loaded state has none."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used = [parameter for parameter in group["params"] if parameter.grad is not None]
            least = 2 if group.get("exclude_1d", True) else 0
            for scaled in (True, False):
                some = [p for p in used if (not group["excluded"] and p.ndim >= least) == scaled]
                if some:
                    self.update(some, group, scaled=scaled)
        return loss

    @abstractmethod
    def update(self, parameters: list[Tensor], group: dict[str, Any], *, scaled: bool) -> None:
        """Updates one or more parameters: each by the ratio of its norms if `scaled`, else without a ratio."""


def gradients(parameters: Tensors) -> tuple[Tensor, ...]:
    """Returns the gradients of parameters that all have one."""
    return tuple(parameter.grad for parameter in parameters if parameter.grad is not None)


def decayed(parameters: Tensors, weight_decay: float) -> tuple[Tensor, ...]:
    """Returns g + weight_decay·w for each parameter w with gradient g."""
    if weight_decay == 0:
        return gradients(parameters)
    return tuple(torch._foreach_add(gradients(parameters), parameters, alpha=weight_decay))


def norms(tensors: Tensors) -> Tensor:
    """Returns the L2 norm of each tensor, as one tensor of shape (number of tensors,)."""
    return torch.stack(torch._foreach_norm(tensors))


def add_each(targets: Tensors, tensors: Tensors, factors: Tensor) -> None:
    """Adds to each target its tensor times its own factor; `factors` has shape (number of tensors,)."""
    torch._foreach_addcmul_(targets, tensors, list(factors.unbind()))


def add_all(targets: Tensors, tensors: Tensors, factor: float | Tensor) -> None:
    """Adds to each target its tensor times one factor, a number or a 0-dim tensor."""
    if isinstance(factor, Tensor):  # as `alpha` it would be read on the host
        torch._foreach_add_(targets, torch._foreach_mul(tensors, factor))
    else:
        torch._foreach_add_(targets, tensors, alpha=factor)
