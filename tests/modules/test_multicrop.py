"""Views of several sizes: which are the global ones, and one pass per resolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, View
from sslcli.modules.multicrop import by_resolution, each_view, global_count


def images(*sides: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 2, side, side, generator=generator) for side in sides]


def batch(*sides: int) -> Batch:
    return Batch([View(image) for image in images(*sides)], None, torch.arange(3), {})


@pytest.mark.parametrize(
    ("sides", "count"), [((8, 8), 2), ((8, 8, 4, 4, 4), 2), ((8, 8, 8, 4), 3), ((8, 8, 6, 4, 6), 2)]
)
def test_the_leading_views_of_the_first_one_s_size_are_global(sides: tuple[int, ...], count: int) -> None:
    assert global_count(batch(*sides), "swav") == count


def test_fewer_or_more_global_views_than_wanted_are_refused() -> None:
    with pytest.raises(UserError, match="swav needs 2 or more views of the first one's size, and there are 1"):
        global_count(batch(8, 4, 4), "swav")
    with pytest.raises(UserError, match="dino needs 2 views of the first one's size, and there are 3"):
        global_count(batch(8, 8, 8), "dino", least=2, most=2)
    with pytest.raises(UserError, match="dino needs 1 to 2 views"):
        global_count(batch(8, 8, 8), "dino", least=1, most=2)
    assert global_count(batch(8, 4), "dino", least=1) == 1


@pytest.mark.parametrize("sides", [(8, 8, 12), (8, 8, 4, 8), (4, 4, 8, 8)])
def test_global_views_must_come_first(sides: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="swav needs its largest views first, not sizes of"):
        global_count(batch(*sides), "swav")


class Counting(nn.Module):
    """(M, 2, H, W) → (M, 5) through a batch norm; remembers what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 5)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return self.linear(self.norm(x).mean(dim=(2, 3)))


def test_the_network_runs_once_for_each_resolution() -> None:
    network = Counting()
    by_resolution(network, images(8, 8, 4, 4, 4))
    assert network.shapes == [(6, 2, 8, 8), (9, 2, 4, 4)]
    assert network.norm.num_batches_tracked.item() == 2


def test_each_view_gets_its_own_features_in_order() -> None:
    network, views = Counting().eval(), images(8, 8, 4, 6, 4)
    found = by_resolution(network, views)
    assert len(found) == 5
    for features, image in zip(found, views, strict=True):
        torch.testing.assert_close(features, network(image))


def test_views_of_one_size_share_their_batch_statistics() -> None:
    network, views = Counting().train(), images(8, 8, 4)
    first, second, local = by_resolution(network, views)
    together = network(torch.cat(views[:2]))
    torch.testing.assert_close(torch.cat((first, second)), together)
    assert not torch.allclose(first, network(views[0]), atol=1e-4)
    torch.testing.assert_close(local, network(views[2]))


def test_views_go_one_at_a_time_or_together_as_asked() -> None:
    for together, shapes in ((False, [(3, 2, 8, 8)] * 2 + [(3, 2, 4, 4)]), (True, [(6, 2, 8, 8), (3, 2, 4, 4)])):
        network = Counting()
        assert len(each_view(network, images(8, 8, 4), together=together)) == 3
        assert network.shapes == shapes


def test_a_head_sees_the_features_of_all_views_together() -> None:
    head = nn.BatchNorm1d(5)
    found = each_view(head, [torch.randn(3, 5) for _ in range(4)], together=True)
    assert [tuple(z.shape) for z in found] == [(3, 5)] * 4
    assert head.num_batches_tracked.item() == 1
