"""What fused and multi-tensor kernels need: one memory format, no read of a device's values, factors written out."""

from __future__ import annotations

import pytest
import torch
from test_layerwise import KINDS, give_gradients, gradients, parameters
from torch import nn

from sslcli.optimizers import kernels
from sslcli.optimizers.layerwise import LayerwiseSGD


@KINDS
def test_gradients_and_buffers_of_another_memory_format_are_converted(cls: type[LayerwiseSGD]) -> None:
    """Fused kernels ignore strides: without a conversion the update would be silently wrong."""
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        value = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        parameter = nn.Parameter(value.contiguous(memory_format=layout))
        optimizer = cls([parameter], lr=1.0, weight_decay=0.1)
        optimizer.state[parameter]["momentum_buffer"] = value.clone()
        for step in range(3):
            parameter.grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        ends.append(parameter.detach().contiguous())
    torch.testing.assert_close(*ends)


@KINDS
def test_a_grad_scaler_does_not_read_whether_to_skip(cls: type[LayerwiseSGD], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own way is `.item()`, which waits for the device. Gradients that still have its scale are unscaled."""
    ours, expected = parameters(), parameters()
    optimizer, reference = cls(ours.values(), 0.1, weight_decay=0.1), cls(expected.values(), 0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    monkeypatch.setattr(scaler, "_maybe_opt_step", lambda *_: pytest.fail("reads a value"))
    for step, bad in enumerate((True, False, True, False)):
        for name, gradient in gradients(step).items():
            ours[name].grad = gradient * scaler.get_scale() * (torch.inf if bad and name == "matrix" else 1.0)
            expected[name].grad = gradient
        scaler.step(optimizer)
        scaler.update()
        if not bad:
            reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name])


@KINDS
@pytest.mark.parametrize("fused", [True, False])
def test_without_momentum_a_step_is_one_of_a_new_optimizer(
    cls: type[LayerwiseSGD], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr("sslcli.optimizers.kernels.has_fused", lambda tensors: False)
    ours, expected = parameters(), parameters()
    optimizer = cls(ours.values(), lr=0.1, momentum=0.0, weight_decay=0.1)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(expected, step)
        optimizer.step()
        cls(expected.values(), lr=0.1, momentum=0.9, weight_decay=0.1).step()  # zeros in its buffers
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name])


@pytest.mark.parametrize("chunk", [10**9, 60, 1])
def test_factors_written_out_scale_as_factors_alone_do(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_FACTORS", chunk)
    tensors = [*gradients(0).values(), torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), torch.ones(2)]
    factors = torch.rand(len(tensors), dtype=torch.float64)
    expected = [each * factor.to(each.dtype) for each, factor in zip(tensors, factors, strict=True)]
    strides = [each.stride() for each in tensors]
    kernels.scale_by_written_(tensors, factors)
    assert [each.stride() for each in tensors] == strides
    for each, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(each, wanted)
