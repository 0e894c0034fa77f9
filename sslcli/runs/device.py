"""Device and precision, the meaning of `auto` on this machine; and the memory format of a network."""

from __future__ import annotations

import torch
from torch import nn

from sslcli.contracts.errors import UserError


def resolve_device(name: str, option: str = "device") -> torch.device:
    """Returns the device that `name`, the value of `option`, stands for; UserError if there is none.

    `cuda:N` becomes the current CUDA device: kernels of other libraries, and memory that a tensor's device does not
    decide, would otherwise be on the first one. Callers restore it (`arithmetic.settings_restored`).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{option}: {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"there are {count} CUDA devices" if count else "there is no CUDA device that torch can use"
            raise UserError(f"{option}: {name}: {there}; set it to cpu or auto")
        if device.index is not None:
            torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{option}: mps: not available here; set it to cpu or auto")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Returns `fp32`, `tf32`, `bf16` or `fp16`; `auto` is bf16 if the hardware supports it, and fp16 on older GPUs.

    Raises:
        UserError: the device has no TF32.
    """
    if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8):
        raise UserError("training.precision: tf32: needs a GPU of NVIDIA's Ampere generation or newer; set it to fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu":
        # Without such instructions bf16 is emulated and slower than fp32.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return "bf16" if any(getattr(torch.cpu, check, lambda: False)() for check in checks) else "fp32"
    return "fp32"


def memory_format(module: nn.Module, device: torch.device) -> torch.memory_format:
    """Returns channels_last, in which convolutions are fastest, or the contiguous format where that would crash.

    On CPUs with AVX-512, torch 2.15's backward pass of a strided 1×1 convolution of fewer than 16 channels writes out
    of bounds in channels_last, at 64 pixels and more.
    """
    convolutions = (each for each in module.modules() if isinstance(each, nn.Conv2d))
    narrow = any(c.in_channels < 16 and c.kernel_size == (1, 1) and c.stride != (1, 1) for c in convolutions)
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last
