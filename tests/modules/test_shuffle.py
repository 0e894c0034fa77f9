"""Shuffled batch norm on one process, and when it is needed; on two it is tested with MoCo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslcli.modules.norms import BatchRenorm1d
from sslcli.modules.shuffle import has_local_batch_norm, shuffled
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


def test_only_batch_norms_of_one_process_call_for_a_shuffle() -> None:
    assert has_local_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2)))
    assert has_local_batch_norm(nn.Sequential(nn.Linear(2, 2), BatchRenorm1d(2)))
    assert not has_local_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)))
    assert not has_local_batch_norm(nn.Sequential(SyncedBatchNorm(2), nn.SyncBatchNorm(2)))


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
