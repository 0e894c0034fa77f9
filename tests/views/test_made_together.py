"""Views that are made together are those made one at a time, in one pass, and one after another in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sslcli.augmentations import jitter, selected
from sslcli.augmentations.flip import Flip
from sslcli.contracts.views import Operation, ViewSpec
from sslcli.testing.augmentations import check_views
from sslcli.views import pipeline
from sslcli.views.kinds import ViewKind
from sslcli.views.normalize import normalize
from sslcli.views.pipeline import ViewMaker

MEAN, STD, SEED, EPOCH, COUNT, SIZE = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1, 3, 7, 16
CROP: dict[str, Any] = {"crop_scale": [0.2, 1.0], "interpolation": "bicubic"}
PRESETS: dict[str, Any] = {
    "simclr": {"preset": "simclr", "blur": 0.5},
    "byol": {"preset": "byol"},
    "dino": {"preset": "dino", "local_count": 3, "local_size": 8},
    "moco_v1": {"preset": "moco_v1"},
    "one has neither flip nor blur": [
        {**CROP, "count": 2, "flip": 0.5, "grayscale": 0.3, "blur": 0.5},
        {**CROP, "crop_scale": [0.1, 0.3], "grayscale": 0.1, "solarize": 0.5},
        {**CROP, "flip": 1.0, "grayscale": 0.3, "blur": 1.0},
    ],
    "another filter": [CROP, {**CROP, "interpolation": "bilinear"}],
    "other strengths": [{**CROP, "jitter": {"hue": 0.1}}, {**CROP, "jitter": {"hue": 0.2}}],
}


def maker(name: str, size: int = SIZE) -> ViewMaker:
    return ViewMaker(check_views(name, PRESETS[name], size), 3, MEAN, STD, SEED)


def sources(views: ViewMaker, cropped: bool) -> tuple[list[Tensor], Tensor | None]:
    generator, shapes = torch.Generator().manual_seed(0), [(24, 30)]
    if cropped:
        shapes = [(size, size) for size in views.sizes]
    images = [torch.randint(0, 256, (COUNT, 3, *shape), generator=generator).to(torch.uint8) for shape in shapes]
    return images, None if cropped else torch.tensor(shapes).repeat(COUNT, 1)


def made(
    views: ViewMaker, cropped: bool = False, layout: torch.memory_format = torch.contiguous_format
) -> list[Tensor]:
    images, sizes = sources(views, cropped)
    return views.apply(images, views.draw(EPOCH, torch.arange(COUNT), sizes), cropped, layout)


def alone(spec: ViewSpec, number: int, images: Tensor, sizes: Tensor | None) -> Tensor:
    """The view with this number, one operation after another; with sides that are multiples of 8, the same bits."""
    kind = ViewKind(spec.model_copy(update={"count": 1}), 3)
    parameters = kind.draw((SEED, EPOCH, torch.arange(COUNT)), number, sizes, False)
    steps = list(zip(kind.operations, parameters, strict=True))
    operation, values = steps.pop(0)
    if sizes is None:
        images = images.float() / 255
    else:
        folded = {"mirror": steps.pop(0)[1]["chosen"]} if steps and isinstance(steps[0][0], Flip) else {}
        images = operation.apply(images, {**values, **folded})
    for operation, values in steps:
        images = operation.apply(images, values)
    return normalize(images, MEAN, STD)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("samples", [COUNT * 100, COUNT * 2, 3])  # all at once, two views at once, parts of a view
@pytest.mark.parametrize("way", ["subsets", "static"])
@pytest.mark.parametrize("name", PRESETS)
def test_views_made_together_are_bitwise_those_made_alone(
    name: str, way: str, samples: int, cropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "static":
        for module in (jitter, selected):
            monkeypatch.setattr(module, "takes_subsets", lambda images: False)
    views = maker(name)
    monkeypatch.setattr(pipeline, "_CHUNK", samples * 3 * SIZE**2)
    images, sizes = sources(views, cropped)
    specs = [kind.spec for kind in views.kinds for _ in range(kind.spec.count)]
    assert len(specs) == len(views)
    for number, (spec, view) in enumerate(zip(specs, made(views, cropped), strict=True)):
        assert torch.equal(view, alone(spec, number, images[number if cropped else 0], sizes))


def stages(name: str) -> list[list[tuple[str, list[int]]]]:
    """For each group the operations and the kinds that they are applied to."""
    return [
        [(type(stage.operation).__name__.lower(), list(stage.of)) for stage in group.stages]
        for group in maker(name).groups
    ]


def test_kinds_that_differ_in_probabilities_and_in_one_operation_share_the_rest() -> None:
    both = [(name, [0, 1]) for name in ("crop", "flip", "jitter", "grayscale", "blur")]
    assert stages("byol") == [[*both, ("solarize", [1])]]
    assert [group[:1] for group in stages("dino")] == [[("crop", [0, 1])], [("crop", [0])]]
    assert [len(group) for group in maker("dino").groups] == [2, 3]


def test_kinds_share_only_what_is_the_same_for_both() -> None:
    assert stages("another filter") == [[("crop", [0])], [("crop", [0])]]
    assert stages("other strengths") == [[("crop", [0, 1]), ("jitter", [0]), ("jitter", [1])]]


def test_an_operation_is_shared_by_adjacent_kinds_alone() -> None:
    (group,) = stages("one has neither flip nor blur")
    assert group[0] == ("crop", [0, 1, 2])
    assert [kinds for name, kinds in group if name == "grayscale"] == [[0, 1, 2]]
    assert [kinds for name, kinds in group if name in ("flip", "blur")] == [[0], [2], [0], [2]]


def test_every_operation_is_applied_once_for_all_views_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    views, calls = maker("dino"), Counter[str]()
    for group in views.groups:
        for stage in group.stages:
            key = f"{type(stage.operation).__name__} {group.size}"

            def counted(images: Tensor, values: Any, apply: Any = stage.operation.apply, key: str = key) -> Any:
                calls[key] += 1
                return apply(images, values)

            monkeypatch.setattr(stage.operation, "apply", counted)
    made(views)
    assert set(calls.values()) == {1}
    assert len(calls) == 5 + 4  # flips are part of the crops; local views have no solarize


@pytest.mark.parametrize("samples", [COUNT * 100, 3])
def test_views_of_a_group_follow_each_other_in_memory(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views = maker("byol")
    monkeypatch.setattr(pipeline, "_CHUNK", samples * 3 * SIZE**2)
    plain = made(views)
    for layout in (torch.contiguous_format, torch.channels_last):
        first, second = made(views, layout=layout)
        assert first.is_contiguous(memory_format=layout)
        assert second.is_contiguous(memory_format=layout)
        assert second.data_ptr() == first.data_ptr() + first.nbytes
        assert torch.equal(first, plain[0])
        assert torch.equal(second, plain[1])


def test_a_device_makes_small_views_together_and_large_ones_one_at_a_time() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    small, large = maker("simclr", 32), maker("simclr", 224)
    assert small._samples_at_once(0, cuda, 1024) >= 2 * 1024
    assert 64 * 2 <= large._samples_at_once(0, cuda, 64) < 64 * 4
    assert large._samples_at_once(0, cuda, 512) == 512  # a view is never divided
    assert small._samples_at_once(0, cpu, 1024) < 1024
    small.compile()
    assert small._samples_at_once(0, cpu, 1024) == 1024


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_a_group_is_one_graph_for_the_compiler(name: str) -> None:
    views, graphs = maker(name), []
    images, sizes = sources(views, False)
    draws = views.draw(EPOCH, torch.arange(COUNT), sizes)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    (group,), (parameters,) = views.groups, draws.values
    affine = torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).unbind()
    results = []
    for make in (torch.compile(group.make, fullgraph=True, dynamic=False, backend=backend), group.make):
        results.append(group.apply(make, images * 2, parameters, *affine, False, torch.channels_last, COUNT * 2))
    assert len(graphs) == 1
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_an_option_that_apply_reads_keeps_operations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flip, "drawn", frozenset())
    assert Operation.drawn == frozenset()  # a plugin that says nothing is never shared with another probability
    assert [kinds for name, kinds in stages("one has neither flip nor blur")[0] if name == "flip"] == [[0], [2]]
    flips = {"count": 1, "operations": [{"name": "crop"}, {"name": "flip", "p": 0.5}]}
    other = {"count": 1, "operations": [{"name": "crop"}, {"name": "flip", "p": 0.1}]}
    (group,) = ViewMaker(check_views("flips", [flips, other], SIZE), 3, MEAN, STD, SEED).groups
    assert [list(stage.of) for stage in group.stages] == [[0, 1], [0], [1]]
