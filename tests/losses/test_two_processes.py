"""Each loss on two processes has the value and the gradient of one process with the joined batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from process_group import in_group
from torch import Tensor

from sslcli.distributed import _GatherWithGradient
from sslcli.losses import (
    barlow_twins,
    barlow_twins_and_metrics,
    batch_info_nce,
    byol_regression,
    dcl,
    dino,
    gaussian_directions,
    info_nce,
    negative_cosine,
    nt_xent,
    sigreg,
    sinkhorn,
    sup_con,
    swapped_prediction,
    vicreg,
    vicreg_and_metrics,
)
from sslcli.losses.contrast import contrast_bce, contrast_ce, pair_logits

#: Images in the joined batch, half of them on each process; dimensions; views of an image.
COUNT, DIM, VIEWS = 8, 6, 4
PAIRS = [(0, 1), (0, 3), (1, 2)]

#: From (VIEWS, N, DIM) embeddings that need a gradient and N whole numbers (labels, indices), to the loss.
Loss = Callable[[Tensor, Tensor], Tensor]

CASES: dict[str, Loss] = {
    "barlow_twins": lambda z, labels: barlow_twins(z[0], z[1], 0.5),
    "barlow_twins of pairs": lambda z, labels: barlow_twins_and_metrics(list(z), PAIRS)[0],
    "byol_regression": lambda z, labels: byol_regression(z[0], z[1]),
    "vicreg": lambda z, labels: vicreg(z[0], z[1]),
    "vicreg of pairs": lambda z, labels: vicreg_and_metrics(list(z), PAIRS)[0],
    "contrast of all": lambda z, labels: contrast_ce(pair_logits(z[0], z[1], 0.5, own=z[2]), 50.0),
    "contrast of the other view": lambda z, labels: contrast_ce(pair_logits(z[0], z[1].detach(), 0.5)),
    "contrast_bce": lambda z, labels: contrast_bce(pair_logits(z[0], z[1], 0.5, own=z[0], unit_sphere=False)),
    "contrast with a queue": lambda z, labels: contrast_bce(pair_logits(z[0], z[1], 0.5, negatives=inputs()[0][2])),
    "batch_info_nce": lambda z, labels: batch_info_nce(z[0], z[1], 0.5),
    "batch_info_nce to predictions": lambda z, labels: batch_info_nce(z[0], z[1], 0.5, keys_have_gradient=True),
    "eqco": lambda z, labels: info_nce(z[0], z[1], inputs()[0][2], 0.5, 50.0),
    "info_nce": lambda z, labels: info_nce(z[0], z[1], inputs()[0][2], 0.5),
    "dcl": lambda z, labels: dcl(z[:2].transpose(0, 1), 0.5),
    "dclw": lambda z, labels: dcl(z.transpose(0, 1), 0.5, 0.5),
    "dino": lambda z, labels: dino(list(z), [*z[:2].roll(1, 2)], torch.linspace(-1, 1, DIM), 0.3, 0.2),
    "nt_xent": lambda z, labels: nt_xent(z[0], z[1], 0.5),
    "negative_cosine": lambda z, labels: negative_cosine(z[0], z[1]),
    "sigreg": lambda z, labels: sigreg(z, gaussian_directions(inputs()[0].sigmoid()[0, :4].flatten(), DIM)),
    "sinkhorn": lambda z, labels: (sinkhorn(z[0], 0.5) * z[1]).sum(dim=1).mean(),
    "sinkhorn_of_some": lambda z, labels: (sinkhorn(z[0], 0.5, used=labels < 2) * z[1]).sum(dim=1).mean(),
    "swapped_prediction": lambda z, labels: swapped_prediction(list(z), [sinkhorn(s, 0.5) for s in z[:2]]),
    "sup_con": lambda z, labels: sup_con(z.transpose(0, 1), labels, 0.2),
    "sup_con_one": lambda z, labels: sup_con(z.transpose(0, 1), labels, 0.2, contrast="one"),
    "sup_con_without_labels": lambda z, labels: sup_con(z.transpose(0, 1), None, 0.2),
}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(VIEWS, COUNT, DIM, generator=generator, dtype=torch.float64)
    return z, torch.tensor([0, 1, 2, 0, 3, 1, 0, 2])  # classes on both processes, and one seen once


def value_and_gradient(loss: Loss, rows: slice) -> Tensor:
    """The loss of some of the images, and its gradient for a weight that all of them share."""
    z, labels = inputs()
    weight = (torch.eye(DIM, dtype=torch.float64) + 0.1 * z[0, :DIM]).requires_grad_()
    result = loss(z[:, rows] @ weight, labels[rows])
    result.backward()
    assert weight.grad is not None
    return torch.cat((result.detach().view(1), weight.grad.flatten()))


def one_of_two(rank: int) -> dict[str, Tensor]:
    half, found = COUNT // 2, {}
    for name, loss in CASES.items():
        result = value_and_gradient(loss, slice(half * rank, half * rank + half))
        dist.all_reduce(result)  # the mean over the processes, as DDP makes it
        found[name] = result / 2
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The results of two processes, started once for all losses."""
    return in_group(2, one_of_two, tmp_path_factory.mktemp("two"))[0]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_value_and_gradient_of_one(name: str, two_processes: dict[str, Tensor]) -> None:
    torch.testing.assert_close(two_processes[name], value_and_gradient(CASES[name], slice(None)), rtol=1e-9, atol=1e-12)


def test_the_gathers_backward_does_not_change_its_incoming_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another operand's gradient as well."""
    monkeypatch.setattr(dist, "all_reduce", lambda x: x.mul_(2))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    gradient = torch.arange(8.0).view(4, 2)
    own = _GatherWithGradient.backward(None, gradient)
    assert torch.equal(gradient, torch.arange(8.0).view(4, 2))
    assert torch.equal(own, 2 * gradient[2:])
