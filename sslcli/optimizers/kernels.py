"""Kernels that update many tensors at once: torch's fused ones where the device has them, else its multi-tensor ones.

Fused CPU kernels walk through memory and ignore strides: code that restores optimizer state must give it the memory
format of its parameter (`torch.empty_like(parameter).copy_(saved)`), or updates are silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

_FUSED_DEVICES = ("cuda", "cpu")
Decay = Annotated[float, Field(ge=0, lt=1)]

#: Numbers whose factors are written out at once, 64 MiB of them: one launch for many small tensors, little memory for
#: large ones, beside which a launch costs nothing.
_FACTORS = 1 << 24


def kernels(groups: list[dict[str, Any]]) -> dict[str, bool]:
    """Returns torch's argument for fused kernels, or for multi-tensor ones where torch has no fused ones.

    torch itself raises only at the first step where it has none.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    return {"fused": True} if has_fused(parameters) else {"foreach": True}


def has_fused(tensors: Sequence[Tensor]) -> bool:
    """Returns whether torch has fused optimizer kernels for these tensors."""
    return all(each.device.type in _FUSED_DEVICES and each.is_floating_point() for each in tensors)


def momentum_step(
    parameters: list[Tensor],
    directions: list[Tensor],
    buffers: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    *,
    nesterov: bool = False,
    found_inf: Tensor | None = None,
) -> None:
    """SGD's last lines: m ← momentum·m + d; w ← w − lr·m, or w − lr·(d + momentum·m) with `nesterov`.

    Args:
        parameters: w, each of the memory format of its d and m.
        directions: d.
        buffers: m.
        lr: a number or a 0-dim tensor.
        momentum: in [0, 1); with 0 fused kernels leave m as it is, since nothing reads it.
        nesterov: Nesterov momentum.
        found_inf: a GradScaler's; where it is 1 nothing changes, which fused kernels decide on the device.
    """
    if has_fused(parameters) and len({each.dtype for each in parameters}) == 1:
        torch._fused_sgd_(
            parameters, directions, buffers if momentum else [], weight_decay=0.0, momentum=momentum, lr=lr,
            dampening=0.0, nesterov=nesterov and momentum > 0, maximize=False, is_first_step=False, found_inf=found_inf,
        )  # fmt: skip
        return
    if found_inf is not None and bool(found_inf):
        return
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, directions)
    update = torch._foreach_mul(buffers, momentum) if nesterov else list(buffers)
    if nesterov:
        torch._foreach_add_(update, directions)
    torch._foreach_sub_(parameters, torch._foreach_mul(update, lr))


def scale_each_(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiplies each tensor by its own factor, in place, in a few launches, without waiting for the device.

    Args:
        tensors: dense in memory, in any order of dimensions.
        factors: (number of tensors,).
    """
    if factors.device.type == "cpu":
        torch._foreach_mul_(tensors, list(factors.unbind()))
    else:
        scale_by_written_(tensors, factors)


def scale_by_written_(tensors: list[Tensor], factors: Tensor) -> None:
    """The same on a device: its multi-tensor kernels need operands of equal shapes and strides, and would take one
    launch for each 0-dim factor. So the factors are written out to the tensors' shapes."""
    for some, own in _chunks(tensors, factors.unbind()):
        if len(some) == 1:
            some[0].mul_(own[0])
            continue
        written = torch.cat([factor.expand(each.numel()) for factor, each in zip(own, some, strict=True)])
        parts = torch.split(written, [each.numel() for each in some])
        operands = [part.as_strided(each.shape, each.stride()) for part, each in zip(parts, some, strict=True)]
        torch._foreach_mul_(some, operands)


def _chunks(tensors: list[Tensor], factors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Tensors of one dtype that have `_FACTORS` numbers together, or a single one, with their factors."""
    some: list[Tensor] = []
    own: list[Tensor] = []
    numbers = 0
    for each, factor in zip(tensors, factors, strict=True):
        if some and (numbers + each.numel() > _FACTORS or each.dtype != some[0].dtype):
            yield some, own
            some, own, numbers = [], [], 0
        some.append(each)
        own.append(factor)
        numbers += each.numel()
    if some:
        yield some, own
