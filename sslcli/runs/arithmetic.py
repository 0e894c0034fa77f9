"""torch's process-wide settings for arithmetic: float32 or TF32, deterministic kernels, the current CUDA device.

Whoever changes them does so within `settings_restored`, so that a Python caller keeps its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restores after the block what this module and `torch.cuda.set_device` set."""
    deterministic = _deterministic()
    older = [(write, _readable(read)) for read, write in _OLDER]
    benchmark = torch.backends.cudnn.benchmark
    precisions = [(owner, owner.fp32_precision) for owner in _newer()]
    device = torch.cuda.current_device() if _cuda_started() else 0
    try:
        yield
    finally:
        if _deterministic() != deterministic:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        for write, value in older:
            if value is not None:
                write(value)
        torch.backends.cudnn.benchmark = benchmark
        for owner, precision in precisions:
            owner.fp32_precision = "none"  # it follows the more general settings, as it may have before
            if owner.fp32_precision != precision:
                owner.fp32_precision = precision
        if _cuda_started():
            torch.cuda.set_device(device)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Makes float32 products and convolutions float32 on CUDA too: TF32's 10 bits would reorder neighbors."""
    with settings_restored():
        allow_tf32(False)
        yield


def allow_tf32(allowed: bool) -> None:
    """Sets whether float32 products and convolutions on CUDA may be computed in TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    for owner in _newer():  # a caller's more general setting would count where the older one says nothing
        if (owner.fp32_precision == "tf32") != allowed:
            owner.fp32_precision = "tf32" if allowed else "ieee"


def use_deterministic_kernels(deterministic: bool) -> None:
    """Restricts torch to deterministic kernels, or lets cuDNN try each of its kernels for the fastest."""
    if deterministic:  # for Python callers; the program sets it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if _deterministic() != (deterministic, False):
        torch.use_deterministic_algorithms(deterministic)
    # Image sizes never change within a run, so trying each kernel pays off; a choice by time is not reproducible.
    torch.backends.cudnn.benchmark = not deterministic


#: Reads and writes the settings of before torch 2.9; writing one of them sets the newer ones too.
_OLDER: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: torch.backends.cudnn.allow_tf32, lambda value: setattr(torch.backends.cudnn, "allow_tf32", value)),
]


def _readable(read: Callable[[], Any]) -> Any:
    """An older setting; None where it cannot be read, because a newer one was set by itself."""
    try:
        return read()
    except RuntimeError:
        return None


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _cuda_started() -> bool:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started


def _newer() -> list[Any]:
    """The owners of the settings that torch has since 2.9, which the older ones write too."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
