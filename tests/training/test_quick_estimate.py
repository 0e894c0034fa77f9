"""The estimate at the start of a run leaves no trace, whatever a forward pass does with its buffers."""

from __future__ import annotations

import torch
from conftest import ConfigMaker
from torch import Tensor, nn

from sslcli.training.quick_estimate import quick_estimate
from sslcli.training.setup import build


class Restless(nn.Module):
    """Changes, resizes, replaces, adds and removes buffers in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("changed", "resized", "replaced", "removed"):
            self.register_buffer(name, torch.arange(4.0))
        self.register_buffer("empty", None)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.changed.add_(1)
        self.resized.resize_(9).fill_(7)
        self.replaced = torch.zeros(2, 2)
        self.empty = torch.ones(3)
        if hasattr(self, "removed"):
            del self.removed
        self.register_buffer(f"added{len(self._buffers)}", torch.ones(1))


def test_buffers_that_a_step_changes_resizes_or_adds_are_as_before(tiny: ConfigMaker) -> None:
    session = build(tiny())
    session.method.restless = restless = Restless()
    session.method.backbone.register_forward_pre_hook(restless)
    before = {name: (buffer, buffer.clone()) for name, buffer in session.method.named_buffers()}
    assert quick_estimate(session).problem == ""
    after = dict(session.method.named_buffers())
    assert list(after) == list(before)
    for name, (buffer, value) in before.items():
        assert after[name] is buffer, name
        assert torch.equal(buffer, value), name
    assert restless.empty is None
