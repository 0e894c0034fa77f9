"""torch's process-wide settings for arithmetic: float32 or TF32, deterministic kernels, the current CUDA device.

Whoever changes them does so within `settings_restored`, so that a Python caller keeps its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restores after the block what this module, `torch.cuda.set_device` and `training.compile` set."""
    deterministic = _deterministic()
    older = [(write, _readable(read)) for read, write in _OLDER]
    suppressed = getattr(sys.modules.get(_DYNAMO), "suppress_errors", False)
    settings = [(owner, name, getattr(owner, name)) for owner, name in _settings()]
    device = torch.cuda.current_device() if _cuda_started() else 0
    try:
        yield
    finally:
        if _deterministic() != deterministic:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        for write, value in older:
            if value is not None:
                write(value)
        for owner, name, value in settings:
            setattr(owner, name, value)
        if _DYNAMO in sys.modules:
            torch._dynamo.config.suppress_errors = suppressed
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


def use_deterministic_kernels(deterministic: bool) -> None:
    """Restricts torch to deterministic kernels, or lets cuDNN try each of its kernels for the fastest."""
    if deterministic:  # for Python callers; the program sets it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if _deterministic() != (deterministic, False):
        torch.use_deterministic_algorithms(deterministic)
    # Image sizes never change within a run, so trying each kernel pays off; a choice by time is not reproducible.
    torch.backends.cudnn.benchmark = not deterministic


#: Imported only when something is compiled.
_DYNAMO = "torch._dynamo.config"
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


def _settings() -> Iterator[tuple[Any, str]]:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    yield cudnn, "benchmark"
    if hasattr(matmul, "fp32_precision"):
        yield from ((each, "fp32_precision") for each in (matmul, cudnn.conv, cudnn.rnn))
