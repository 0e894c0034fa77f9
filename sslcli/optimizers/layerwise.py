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

from .kernels import momentum_step

Tensors = list[Tensor] | tuple[Tensor, ...]


class LayerwiseSGD(torch.optim.Optimizer):
    """Base of optimizers that scale the step of each tensor; a subclass says how, and documents the arguments.

    Tensors of fewer than 2 dimensions are not scaled, unless their group has `exclude_1d: False`, nor are those of a
    group with `excluded: True`. Parameters whose gradient is None are skipped. State: `momentum_buffer` per parameter,
    created at once, so that a first step that the GradScaler skips or a parameter that is frozen at first makes no
    difference.
    """

    #: For torch's GradScaler, which would otherwise wait for the device: `step` itself skips what it has to.
    _step_supports_amp_scaling = True

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
        """Returns the momentum buffer of each parameter, in its memory format; zeros if a loaded state has none."""
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            [state["momentum_buffer"]] = aligned([state["momentum_buffer"]], [parameter])
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # What GradScaler.step sets: whether the step is to be skipped, and the scale if gradients still have it.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        for group in self.param_groups:
            used = [parameter for parameter in group["params"] if parameter.grad is not None]
            if scale is not None:
                torch._foreach_mul_(gradients(used), scale.reciprocal())
            least = 2 if group.get("exclude_1d", True) else 0
            for scaled in (True, False):
                some = [p for p in used if (not group["excluded"] and p.ndim >= least) == scaled]
                if some:
                    directions, lr = self.directions(some, group, scaled=scaled)
                    momentum_step(
                        some, aligned(directions, some), self.buffers(some), lr, group["momentum"],
                        nesterov=group.get("nesterov", False), found_inf=found_inf,
                    )  # fmt: skip
        return loss

    @abstractmethod
    def directions(
        self, parameters: list[Tensor], group: dict[str, Any], *, scaled: bool
    ) -> tuple[list[Tensor], float | Tensor]:
        """Returns what to add to the momentum of each parameter, and the learning rate outside of it.

        Each direction is scaled by the ratio of its norms if `scaled`. Neither gradients nor parameters are changed.
        """


def aligned(tensors: list[Tensor], parameters: Tensors) -> list[Tensor]:
    """Returns the tensors in the memory format of their parameters, which fused kernels require."""
    pairs = zip(tensors, parameters, strict=True)
    return [t if _alike(t, p) else torch.empty_like(p).copy_(t) for t, p in pairs]


def _alike(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether memory is in the same order: the stride of a dimension of size 1 does not matter."""
    strides = tensor.stride(), parameter.stride()
    return strides[0] == strides[1] or all(s == 1 or a == b for s, a, b in zip(parameter.shape, *strides, strict=True))


def gradients(parameters: Tensors) -> tuple[Tensor, ...]:
    """Returns the gradients of parameters that all have one."""
    return tuple(parameter.grad for parameter in parameters if parameter.grad is not None)


def decayed(parameters: Tensors, weight_decay: float) -> list[Tensor]:
    """Returns g + weight_decay·w, a new tensor, for each parameter w with gradient g."""
    return list(torch._foreach_add(gradients(parameters), parameters, alpha=weight_decay))


def norms(tensors: Tensors) -> Tensor:
    """Returns the L2 norm of each tensor, as one tensor of shape (number of tensors,)."""
    return torch.stack(torch._foreach_norm(tensors))
