"""Batch normalization over all processes' samples, on any device (torch's own SyncBatchNorm needs a GPU).

With it a run on several processes is the run of one process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslcli.distributed import all_reduce_mean, is_distributed, world_size

from .norms import BatchRenorm1d


class _Mean(torch.autograd.Function):
    """The mean over processes; its gradient is the mean of theirs, for losses that DDP averages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_mean(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce_mean(gradients[0])


class SyncedBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d` and `2d` for inputs (N, C, …) with N the same on every process; the same names and state."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, …), got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not (self.training and is_distributed()):
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean: Tensor = _Mean.apply(x.mean(dim=dims))
        centered = x - mean.view(shape)
        variance: Tensor = _Mean.apply(centered.square().mean(dim=dims))
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            count = x.numel() // x.shape[1] * world_size()
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), rate)
                unbiased = variance.detach() * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        result = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm in `module` by one over all processes, keeping its parameters and buffers."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(module, name, _converted(child))
        else:
            synchronize_batch_norm(child, device)
    return module


def _converted(norm: _BatchNorm) -> SyncedBatchNorm:
    synced = SyncedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        device=None if norm.weight is None else norm.weight.device,
    )  # fmt: skip
    for names in (norm._parameters, norm._buffers):
        for name, value in names.items():
            setattr(synced, name, value)
    synced.training = norm.training
    return synced


def local_batch_norms(module: nn.Module) -> list[_BatchNorm | BatchRenorm1d]:
    """Lists the norms in `module` that see only this process's samples; batch renormalization always does."""
    synced = (nn.SyncBatchNorm, SyncedBatchNorm)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm | BatchRenorm1d)]
    return [norm for norm in norms if not isinstance(norm, synced)]


def local_statistics(module: nn.Module) -> list[Tensor]:
    """Lists the running means and variances of `local_batch_norms`, which drift apart between processes."""
    norms = local_batch_norms(module)
    return [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
