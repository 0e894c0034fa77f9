"""The kernels of torch's own SGD, Adam and AdamW: fused if the device has such kernels.

Fused CPU kernels walk through memory and ignore strides: code that restores optimizer state must give it the memory
format of its parameter (`torch.empty_like(parameter).copy_(saved)`), or updates are silently wrong.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

_FUSED_DEVICES = ("cuda", "cpu")
Decay = Annotated[float, Field(ge=0, lt=1)]


def kernels(groups: list[dict[str, Any]]) -> dict[str, bool]:
    """Returns torch's argument for fused kernels, or for multi-tensor ones where torch has no fused ones.

    torch itself raises only at the first step where it has none.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
