"""Views of several sizes: which are the global ones, and how they go through a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sslcli.contracts.backbone import Features
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, View
from sslcli.modules import as_one_batch, each_view, global_and_local, two_views


def images(*sides: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, side, side, generator=generator) for side in sides]


def batch(*sides: int) -> Batch:
    return Batch([View(image) for image in images(*sides)], None, torch.arange(3), {})


@pytest.mark.parametrize(
    ("sides", "count"), [((8, 8), 2), ((8, 8, 4, 4, 4), 2), ((8, 8, 8, 4), 3), ((8, 8, 6, 4, 6), 2)]
)
def test_the_leading_views_of_the_first_one_s_size_are_global(sides: tuple[int, ...], count: int) -> None:
    x, global_views = global_and_local(batch(*sides), "swav")
    assert [image.shape[-1] for image in x] == list(sides)
    assert global_views == count


def test_too_few_global_views_are_refused() -> None:
    with pytest.raises(UserError, match="swav needs 2 or more views of the first one's size, but there are 1"):
        global_and_local(batch(8, 4, 4), "swav")
    with pytest.raises(UserError, match="swav needs 3 or more views"):
        global_and_local(batch(8, 8, 4), "swav", least=3)
    assert global_and_local(batch(8, 4), "dino", least=1)[1] == 1


@pytest.mark.parametrize("sides", [(8, 8, 12), (8, 8, 4, 8), (4, 4, 8, 8)])
def test_global_views_must_come_first(sides: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="swav needs its largest views first, not sizes of"):
        global_and_local(batch(*sides), "swav")


def test_two_views_are_two() -> None:
    assert [tuple(image.shape) for image in two_views(batch(8, 4), "moco")] == [(3, 2, 8, 8), (3, 2, 4, 4)]
    with pytest.raises(UserError, match="moco needs exactly 2 views of an image, not 3"):
        two_views(batch(8, 8, 4), "moco")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_that_follow_each_other_in_memory_become_a_batch_without_a_copy(layout: torch.memory_format) -> None:
    base = torch.randn(12, 2, 4, 4).contiguous(memory_format=layout)
    a, b, c = base[3:6], base[6:9], base[9:]
    for copied in (False, True):  # copies of views that `ssl bench` keeps are neighbors too
        a, b, c = copy.deepcopy([a, b, c]) if copied else (a, b, c)
        for parts in ([a, b, c], [b, c], [c]):
            one = as_one_batch(parts)
            assert one.data_ptr() == parts[0].data_ptr()
            assert one.is_contiguous(memory_format=layout)
            assert torch.equal(one, torch.cat(parts))
    for parts in ([b, a], [a, c], [a, a], [a, b.clone()], [a, base[6:8]], [a, b.mT], [a.half(), b.half()]):
        one = as_one_batch(parts)
        assert torch.equal(one, torch.cat(parts))
        assert one.data_ptr() != parts[0].data_ptr()
    weight = torch.randn(6, 2, requires_grad=True)
    as_one_batch([weight[:3], weight[3:]]).sum().backward()
    assert torch.equal(weight.grad, torch.ones(6, 2))


class Recording(nn.Module):
    """(M, 2, H, W) → (M, 5) through a batch norm; records the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 5)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Features:
        self.shapes.append(tuple(x.shape))
        return Features(self.linear(self.norm(x).mean(dim=(2, 3))))


@pytest.mark.parametrize(("together", "shapes"), [(False, [(3, 8), (3, 8), (3, 4), (3, 4)]), (True, [(6, 8), (6, 4)])])
def test_views_go_one_at_a_time_or_those_of_one_size_together(together: bool, shapes: list[tuple[int, int]]) -> None:
    network = Recording()
    assert [tuple(h.shape) for h in each_view(network, images(8, 8, 4, 4), together)] == [(3, 5)] * 4
    assert network.shapes == [(count, 2, side, side) for count, side in shapes]


def test_each_view_gets_its_own_features_in_order() -> None:
    network, views = Recording().eval(), images(8, 8, 4, 6, 4)
    for features, image in zip(each_view(network, views), views, strict=True):
        torch.testing.assert_close(features, network(image).pooled)


def test_views_of_one_size_share_their_batch_statistics() -> None:
    network, views = Recording().train(), images(8, 8, 4)
    first, second, local = each_view(network, views)
    torch.testing.assert_close(torch.cat((first, second)), network(torch.cat(views[:2])).pooled)
    assert not torch.allclose(first, network(views[0]).pooled, atol=1e-4)
    torch.testing.assert_close(local, network(views[2]).pooled)


def test_a_head_sees_the_features_of_all_views_together() -> None:
    head = nn.BatchNorm1d(5)
    assert [tuple(z.shape) for z in each_view(head, [torch.randn(3, 5) for _ in range(4)])] == [(3, 5)] * 4
    assert head.num_batches_tracked.item() == 1
