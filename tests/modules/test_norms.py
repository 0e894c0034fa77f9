"""Norms for heads: batch renormalization against a transcription, weight standardization, the choice by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.modules.norms import BatchRenorm1d, StandardizedLinear, build_norm
from sslcli.modules.roles import parameter_roles
from sslcli.modules.sync_norm import local_statistics, synchronize_batch_norm


def literal(x: Tensor, mean: Tensor, var: Tensor, r_limit: float, d_limit: float, eps: float) -> list[list[float]]:
    """Ioffe's algorithm 1, one number at a time."""
    out = [[0.0] * x.shape[1] for _ in range(len(x))]
    for j in range(x.shape[1]):
        column = x[:, j].tolist()
        mu = sum(column) / len(column)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in column) / len(column) + eps)
        running = math.sqrt(var[j].item() + eps)
        r = min(max(sigma / running, 1 / r_limit), r_limit)
        d = min(max((mu - mean[j].item()) / running, -d_limit), d_limit)
        for i, value in enumerate(column):
            out[i][j] = (value - mu) / sigma * r + d
    return out


def relaxed() -> BatchRenorm1d:
    """Half of the way between plain batch norm and the final limits: r to 2, d to 2.5."""
    torch.manual_seed(0)
    norm = BatchRenorm1d(3).double()
    norm.plain_steps, norm.r_steps, norm.d_steps = 0, 20, 20
    norm.steps.fill_(10)
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 40.0]))
    norm.running_var.copy_(torch.tensor([0.8, 1e-2, 2.0]))  # r within the limits, far above them, d far below
    return norm


def test_batch_renorm_equals_the_papers_algorithm() -> None:
    norm = relaxed()
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = literal(x, norm.running_mean.clone(), norm.running_var.clone(), 2.0, 2.5, norm.eps)
    assert torch.allclose(norm(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_batch_renorm_sends_no_gradient_through_its_corrections() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    norm = relaxed()
    mean, std = x.mean(0), (x.var(0, correction=0) + norm.eps).sqrt()
    running = (norm.running_var + norm.eps).sqrt()
    r = (std / running).clamp(0.5, 2)
    by_hand, by_norm = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(6, 3, dtype=torch.float64)
    centered = by_hand - by_hand.mean(0)
    ((centered / (by_hand.var(0, correction=0) + norm.eps).sqrt() * r + (mean - mean)) * weights).sum().backward()
    (norm(by_norm) * weights).sum().backward()
    assert by_norm.grad is not None
    assert torch.allclose(by_norm.grad, by_hand.grad, rtol=1e-10)


def test_batch_renorm_is_batch_norm_at_first_and_keeps_the_same_statistics() -> None:
    torch.manual_seed(0)
    ours, torchs = BatchRenorm1d(4), nn.BatchNorm1d(4)
    for _ in range(3):
        x = 2 * torch.randn(8, 4) + 1
        assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    assert torch.allclose(ours.running_mean, torchs.running_mean)
    assert torch.allclose(ours.running_var, torchs.running_var)
    ours.eval(), torchs.eval()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_batch_renorm_takes_eps_and_momentum() -> None:
    torch.manual_seed(0)
    ours, torchs = BatchRenorm1d(4, eps=1e-3, momentum=0.01), nn.BatchNorm1d(4, eps=1e-3, momentum=0.01)
    for _ in range(2):
        x = 0.1 * torch.randn(8, 4) + 1
        assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    assert torch.allclose(ours.running_mean, torchs.running_mean)
    assert torch.allclose(ours.running_var, torchs.running_var)


def test_batch_renorm_counts_its_steps_in_the_state() -> None:
    norm = BatchRenorm1d(4)
    norm(torch.randn(8, 4))
    assert norm.state_dict()["steps"].item() == 1


def test_batch_renorm_refuses_a_batch_of_one_in_training() -> None:
    with pytest.raises(ValueError, match="more than one sample"):
        BatchRenorm1d(4)(torch.randn(1, 4))


def test_batch_renorm_parameters_are_norm_parameters() -> None:
    assert parameter_roles(nn.Sequential(BatchRenorm1d(4))) == {"0.weight": "norm", "0.bias": "norm"}


def test_standardized_rows_have_mean_zero_and_variance_one_over_fan_in() -> None:
    torch.manual_seed(0)
    layer = StandardizedLinear(50, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(9).add_(4)
    used = layer(torch.eye(50, dtype=torch.float64)).T
    assert torch.allclose(used.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(used.var(1, correction=0), torch.full((3,), 1 / 50, dtype=torch.float64), rtol=1e-5)


def test_standardized_layer_trains_its_weights() -> None:
    layer = StandardizedLinear(5, 3)
    layer(torch.randn(4, 5)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("group", nn.GroupNorm), ("batch_renorm", BatchRenorm1d)],
)
def test_norm_by_name_has_its_class_and_keeps_the_shape(name: str, kind: type[nn.Module]) -> None:
    norm = build_norm(name, 8, groups=4)  # type: ignore[arg-type]
    assert isinstance(norm, kind)
    assert norm(torch.randn(5, 8)).shape == (5, 8)
    assert build_norm("none", 8) is None


def test_groups_that_do_not_divide_are_a_user_error() -> None:
    with pytest.raises(UserError, match="8 dimensions cannot be divided into 3 groups"):
        build_norm("group", 8, groups=3)


def test_batch_renormalization_is_local_to_a_process_even_where_batch_norms_are_synchronized() -> None:
    """The training loop must average its running statistics: they are part of its training output."""
    renorm, batch_norm = BatchRenorm1d(2), nn.BatchNorm1d(2)
    net = nn.Sequential(batch_norm, renorm)
    expected = [batch_norm.running_mean, batch_norm.running_var, renorm.running_mean, renorm.running_var]
    assert [id(found) for found in local_statistics(net)] == [id(tensor) for tensor in expected]
    synchronize_batch_norm(net, torch.device("cpu"))
    assert [id(found) for found in local_statistics(net)] == [id(tensor) for tensor in expected[2:]]
