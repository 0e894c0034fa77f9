"""Lowers the views and the loss of a method for a pretended H100 by torch's compiler, and counts the kernels of the
code that it writes, which is never run."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from cases import CASES, config
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sslcli.losses.nt_xent import nt_xent
from sslcli.views.pipeline import ViewMaker

COUNT, SIZE = 256, 32


def pretend_triton() -> None:
    """Lets Triton's part of the compiler believe that it writes for an H100."""
    import triton
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", 90, 32)
    _triton.has_triton = lambda: True
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))


def kernels(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """Lowers `function(*arguments)`, whose tensors stand for ones on the GPU; returns how many kernels of its own the
    code launches, and how many of libraries."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cuda:0")

    with _disable_current_modes(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        flat, spec = tree_flatten(tree_map(there, arguments))
        tensors = [value for value in flat if isinstance(value, Tensor)]

        def call(*given: Tensor) -> Any:
            rest = iter(given)
            return function(*tree_unflatten([next(rest) if isinstance(v, Tensor) else v for v in flat], spec))

        graph = GraphLowering(make_fx(call, decomposition_table=select_decomp_table())(*tensors))
        with V.set_debug_handler(DebugContext()), V.set_graph_handler(graph), V.set_fake_mode(mode):
            graph.run(*tensors)
            code = graph.codegen()[0]
    text = getattr(code, "value", code)
    return {
        "own": len(re.findall(r"^\s+triton_\w+\.run\(", text, re.MULTILINE)),
        "library": len(re.findall(r"^\s+extern_kernels\.\w+\(", text, re.MULTILINE)),
    }


def lowered_views(_: Any) -> dict[str, int]:
    pretend_triton()
    maker = ViewMaker(config("simclr", f"views={{preset: simclr, size: {SIZE}}}").views, 3, (0.5,) * 3, (0.2,) * 3, 0)
    [group] = maker.groups
    draws = maker.draw(0, torch.arange(COUNT), torch.full((COUNT, 2), SIZE))
    work = group._work(draws.values[0], COUNT, 0, COUNT * len(group))
    images = [torch.zeros(COUNT, 3, SIZE, SIZE, dtype=torch.uint8)] * len(group)
    return kernels(group.make, images, work, *maker._affine, False, torch.channels_last)


def lowered_loss(_: Any) -> dict[str, int]:
    def value_and_gradients(z1: Tensor, z2: Tensor) -> list[Tensor]:
        z1, z2 = (each.detach().requires_grad_() for each in (z1, z2))
        value = nt_xent(z1, z2, 0.5)
        return [value.detach(), *torch.autograd.grad(value, [z1, z2])]

    pretend_triton()
    return kernels(value_and_gradients, torch.zeros(COUNT, 128), torch.zeros(COUNT, 128))


CASES["lowered views"] = lowered_views
CASES["lowered loss"] = lowered_loss
