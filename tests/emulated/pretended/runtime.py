"""What torch asks the CUDA runtime, answered for a machine with pretended H100s: `install()` changes this process."""

from __future__ import annotations

import ctypes
import importlib
import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import streams
from .device import Mode, Pretended, pin, pinned
from .ledger import ledger

DEVICES = 2
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3 (pretended)", major=9, minor=0, total_memory=streams.TOTAL, multi_processor_count=132,
    warp_size=32, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, gcnArchName="",
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
)  # fmt: skip
#: What `torch.cuda.set_device` was called with.
chosen: list[int] = []


def install() -> None:
    """From here on torch has CUDA devices, until the process ends. Needs `shim.c` to have been loaded before torch.

    Raises:
        RuntimeError: it was not.
    """
    shim = ctypes.CDLL(os.environ["PRETENDED_CUDA"])
    # While there is no device torch lets a guard that does nothing take the place of CUDA's.
    torch._C._ensureCUDADeviceGuardSet()
    shim.pretend_devices(127)  # autograd asks about every device that its guard allows
    if torch._C._cuda_getDeviceCount() != 127:
        raise RuntimeError("shim.c was not loaded before torch")
    _answer()
    _memory_and_streams()
    _python_parts()
    Mode().__enter__()


def _answer() -> None:
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count = lambda: DEVICES
    cuda.current_device = lambda: chosen[-1] if chosen else 0
    cuda.set_device = lambda device: chosen.append(_index(device))
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.get_device_name = lambda device=None: PROPERTIES.name
    cuda.get_device_properties = lambda device=None: PROPERTIES
    cuda.is_bf16_supported = lambda *_, **__: True
    cuda.manual_seed = cuda.manual_seed_all = lambda seed: None
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: None


def _index(device: Any) -> int:
    found = device if isinstance(device, int) else torch.device(device).index
    return found or 0


def _memory_and_streams() -> None:
    cuda: Any = torch.cuda
    state = streams.state
    cuda.synchronize = lambda device=None: streams.wait_for_device()
    cuda.Stream, cuda.Event, cuda.stream = streams.Stream, streams.Event, streams.on
    cuda.current_stream = lambda device=None: state.current
    cuda.default_stream = lambda device=None: state.default
    cuda.memory_allocated = cuda.memory_reserved = lambda device=None: state.allocated
    cuda.max_memory_allocated = cuda.max_memory_reserved = lambda device=None: state.peak
    cuda.mem_get_info = lambda device=None: (state.limit - state.allocated, state.limit)
    cuda.empty_cache = lambda: None

    def reset(device: Any = None) -> None:
        state.peak = state.allocated

    cuda.reset_peak_memory_stats = reset


def _python_parts() -> None:
    plain: Any = Tensor
    plain.pin_memory = lambda self, *_: self if pinned(self) else pin(self)
    plain.is_pinned = lambda self, *_: pinned(self)
    importlib.import_module("torch.cuda.amp.common").amp_definitely_not_available = lambda: False
    for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        importlib.import_module(module)._foreach_supported_types.append(Pretended)
    # A module's parameters stay the objects that they are when it moves to the device, as on CUDA.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.backends.cudnn.enabled = False  # its operations have no CPU version
    torch.autograd.set_multithreading_enabled(False)  # there are no threads for these devices
    as_tensor, tensor, attention = torch.as_tensor, torch.tensor, F.scaled_dot_product_attention

    def is_cuda(device: Any) -> bool:
        return device is not None and torch.device(device).type == "cuda"

    def given(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        if not is_cuda(device):
            return as_tensor(data, dtype=dtype, device=device)
        return as_tensor(data, dtype=dtype).to(device)

    def copied(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
        made = tensor(data, dtype=dtype, device=None if is_cuda(device) else device)
        return (made.to(device) if is_cuda(device) else made).requires_grad_(requires_grad)

    def attended(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(query, Pretended):
            return attention(query, key, value, *args, **kwargs)
        return _Attention.apply(lambda *three: attention(*three, *args, **kwargs), query, key, value)

    torch.as_tensor, torch.tensor, F.scaled_dot_product_attention = given, copied, attended


class _Attention(torch.autograd.Function):
    """Attention by one kernel, and backward by three, as torch does on CUDA in half precision."""

    @staticmethod
    def forward(ctx: Any, attention: Any, *three: Pretended) -> Tensor:
        ctx.attention = attention
        ctx.save_for_backward(*three)
        ledger.kernel(1)
        with _disable_current_modes():
            return Pretended(attention(*(each.elem for each in three)), three[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Pretended) -> Any:
        ledger.kernel(3)
        with _disable_current_modes(), torch.enable_grad():
            three = [each.elem.detach().requires_grad_() for each in ctx.saved_tensors]
            found = torch.autograd.grad(ctx.attention(*three), three, gradient.elem)
        return None, *(Pretended(each, gradient.device) for each in found)
