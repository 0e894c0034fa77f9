"""Shuffled batch norm on one process, and when it is used; on two it is tested with MoCo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.modules.norms import BatchRenorm1d
from sslcli.modules.shuffle import encode_shuffled, shuffled
from sslcli.modules.sync_norm import SyncedBatchNorm


def test_on_one_process_only_the_order_of_the_batch_changes() -> None:
    x = torch.arange(16.0).view(-1, 1, 1, 1).repeat(1, 2, 2, 2)
    norm, seen = nn.BatchNorm1d(8), []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images[:, 0, 0, 0].clone())
        return norm(images.flatten(1))

    found = shuffled(network, x, torch.tensor(3))
    torch.testing.assert_close(found, norm(x.flatten(1)))
    assert not found.requires_grad
    assert not torch.equal(seen[0], torch.arange(16.0))
    assert torch.equal(seen[0].sort().values, torch.arange(16.0))


@pytest.mark.parametrize(
    ("norm", "processes", "enabled", "training", "expected"),
    [
        (nn.BatchNorm1d(2), 2, True, True, True),
        (BatchRenorm1d(2), 2, True, True, True),
        (nn.BatchNorm1d(2), 1, True, True, False),
        (nn.BatchNorm1d(2), 2, False, True, False),
        (nn.BatchNorm1d(2), 2, True, False, False),
        (SyncedBatchNorm(2), 2, True, False, False),
        (nn.SyncBatchNorm(2), 2, True, False, False),
        (nn.LayerNorm(2), 2, True, True, False),
    ],
)
def test_keys_are_shuffled_only_where_batch_norms_of_one_process_would_leak(
    norm: nn.Module, processes: int, enabled: bool, training: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr("sslcli.modules.shuffle.is_distributed", lambda: processes > 1)
    monkeypatch.setattr("sslcli.modules.shuffle.shuffled", lambda *arguments: calls.append(arguments))
    encoder = nn.Sequential(nn.Linear(2, 2), norm).train(training)
    encode_shuffled(encoder, torch.randn(4, 2), torch.tensor(3), enabled=enabled)
    assert bool(calls) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_shuffle_does_not_wait_for_the_device() -> None:
    x, number = torch.randn(16, 2, 2, 2, device="cuda"), torch.tensor(3, device="cuda")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            found = shuffled(lambda images: images.flatten(1), x, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, x.flatten(1))
