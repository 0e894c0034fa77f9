"""What every built-in method has to do, beside its contract with the kit's backbone: it joins by being registered."""

from __future__ import annotations

import pytest
import torch
from method_helpers import COUNT, make
from small_options import method_case, method_cases, needs_vit, small
from torch._dynamo.testing import CompileCounter

from sslcli.backbones.resnet import ResNet18, ResNetOptions
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Method, View
from sslcli.plugins import find, load
from sslcli.testing import check_method

NAMES = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
PAIRED = [name for name in NAMES if load("methods", name).view_count != 1]


def resnet() -> Backbone:
    # A residual branch that starts at zero gets no gradient in the first step, whatever the method.
    return ResNet18(ResNetOptions(stem="small", width=8, zero_init_residual=False))


def with_views(name: str, *sizes: int) -> tuple[Method, Batch]:
    cls = load("methods", name)
    method = make(cls, **small(cls.Options))
    schedule = {key: torch.tensor(function(0)) for key, function in method.schedules().items()}
    views = [View(torch.randn(COUNT, 3, size, size)) for size in sizes]
    return method, Batch(views, torch.arange(COUNT) % 4, torch.arange(COUNT), schedule)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in method_cases() if not needs_vit(case.split()[0])])
def test_the_contract_is_kept_around_a_resnet(case: str) -> None:
    name, options = method_case(case)
    check_method(load("methods", name), options, backbone=resnet)


@pytest.mark.parametrize("name", PAIRED)
def test_features_are_the_first_views(name: str) -> None:
    method, batch = with_views(name, *[4] * (load("methods", name).view_count or 2))
    method.eval()  # batch norms mix views, in a way of each method's own
    assert torch.equal(method(batch).features, method.encoder()(batch.views[0].image).pooled)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("sizes", [(4,), (4, 2), (2, 4), (4, 4, 6)])
def test_views_without_two_global_ones_first_are_refused(name: str, sizes: tuple[int, ...]) -> None:
    if load("methods", name).view_count == len(sizes):
        pytest.skip("a fixed number of views may have any sizes")
    method, batch = with_views(name, *sizes)
    with pytest.raises(UserError, match=f"^views: {name} needs "):
        method(batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if load("methods", name).view_count is None])
def test_forward_over_views_of_two_sizes_is_one_graph(name: str) -> None:
    method, batch = with_views(name, 4, 4, 2, 2)
    graphs = CompileCounter()
    torch.compiler.reset()
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    for _ in range(2):
        method(batch).loss.backward()
    assert graphs.frame_count == 1
