"""The view maker: the same draws in any batch, folded flips, cropping in workers, pickling, compiled code."""

from __future__ import annotations

import pickle
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.views import ViewSpec
from sslcli.views import groups, pipeline
from sslcli.views.pipeline import ViewMaker

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CROP, FLIP = {"name": "crop", "options": {"interpolation": "bicubic"}}, {"name": "flip"}
COLORS: list[dict[str, Any]] = [
    {"name": "jitter"},
    {"name": "grayscale"},
    {"name": "blur", "options": {"p": 0.5}},
    {"name": "solarize", "options": {"p": 0.3}},
]


def spec(*operations: dict[str, Any], count: int = 2, size: int = 16) -> ViewSpec:
    return ViewSpec.parse({"count": count, "size": size, "operations": operations})


def maker(*specs: ViewSpec, seed: int = 1) -> ViewMaker:
    return ViewMaker(specs or (spec(CROP, FLIP, *COLORS), spec(CROP, FLIP, count=1, size=8)), 3, MEAN, STD, seed)


def sources(count: int, height: int = 24, width: int = 30) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def sides(count: int, height: int = 24, width: int = 30) -> Tensor:
    return torch.tensor([[height, width]]).repeat(count, 1)


def test_counts_are_expanded_and_every_view_has_its_size() -> None:
    views = maker()
    made = views.apply([sources(5)], views.draw(0, torch.arange(5), sides(5)))
    assert len(views) == 3
    assert views.sizes == [16, 16, 8]
    assert [tuple(view.shape) for view in made] == [(5, 3, size, size) for size in views.sizes]
    assert all(view.dtype == torch.float32 for view in made)


def test_draws_do_not_depend_on_how_a_batch_is_split_and_ordered() -> None:
    views, positions = maker(), torch.arange(100, 112)
    whole = views.draw(3, positions, sides(12)).values
    for rows in (torch.arange(5), torch.arange(5, 12), torch.randperm(12)):
        part = views.draw(3, positions[rows], sides(len(rows))).values
        for group, stages, others in zip(views.groups, whole, part, strict=True):
            for parameters, other in zip(stages, others, strict=True):
                assert parameters.keys() == other.keys()
                for name, value in parameters.items():
                    each = value.unflatten(0, (len(group), 12))  # by view and sample
                    assert torch.equal(each[:, rows].flatten(0, 1), other[name])


def test_views_do_not_depend_on_how_a_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    views, images, positions = maker(), sources(12), torch.arange(12)
    draws = views.draw(0, positions, sides(12))
    whole = views.apply([images], draws)
    halves = [views.apply([images[rows]], views.draw(0, positions[rows], sides(6))) for rows in positions.view(2, 6)]
    for view, parts in zip(whole, zip(*halves, strict=True), strict=True):
        torch.testing.assert_close(view, torch.cat(parts), atol=1e-5, rtol=0)
    monkeypatch.setattr(pipeline, "_CHUNK", 3 * 16 * 16 * 5)
    for view, chunked in zip(whole, views.apply([images], draws), strict=True):
        torch.testing.assert_close(view, chunked, atol=1e-5, rtol=0)


def test_draws_differ_between_samples_views_operations_epochs_and_seeds() -> None:
    same = {"name": "grayscale", "options": {"p": 0.5}}
    once = spec(CROP, same, same, count=2)
    positions = torch.arange(200)

    def bits(epoch: int, seed: int, view: int, operation: int) -> Tensor:
        return (
            maker(once, seed=seed).draw(epoch, positions, sides(200)).values[0][operation]["chosen"].view(2, 200)[view]
        )

    patterns = [bits(0, 1, 0, 1), bits(0, 1, 0, 2), bits(0, 1, 1, 1), bits(1, 1, 0, 1), bits(0, 2, 0, 1)]
    for index, pattern in enumerate(patterns):
        assert 60 < pattern.sum() < 140
        for other in patterns[:index]:
            assert 60 < (pattern != other).sum() < 140


def test_repeats_of_an_image_become_different_views() -> None:
    views, images = maker(), sources(1).repeat(16, 1, 1, 1)
    for view in views.apply([images], views.draw(0, torch.arange(16), sides(16))):
        assert len(view.flatten(1).unique(dim=0)) == 16


def test_a_flip_folded_into_the_crop_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, images = maker(), sources(8)
    draws = folded.draw(0, torch.arange(8), sides(8))
    assert {bool(value) for value in draws.values[0][1]["chosen"]} == {True, False}
    monkeypatch.setattr(groups, "Resampling", ViewMaker)  # no operation is an instance of it
    apart = maker()
    for one, other in zip(folded.apply([images], draws), apart.apply([images], draws), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_views_cropped_by_workers_are_the_same_to_one_8_bit_level() -> None:
    views, images = maker(spec(CROP, FLIP, *COLORS[:2]), spec(CROP, FLIP, size=8)), sources(8)
    positions = torch.arange(8)
    resident = views.apply([images], views.draw(2, positions, sides(8)))
    crops = [
        views.crop_one(image, views.draw(2, positions[n : n + 1], sides(1), crops_only=True))
        for n, image in enumerate(images)
    ]
    stacked = [torch.stack(view) for view in zip(*crops, strict=True)]
    assert all(view.dtype == torch.uint8 for view in stacked)
    cropped = views.apply(stacked, views.draw(2, positions, None), cropped=True)
    for one, other in zip(resident[2:], cropped[2:], strict=True):  # crop and flip alone
        assert ((one - other) * torch.tensor(STD).view(-1, 1, 1) * 255).abs().max() <= 1.001
    for one, other in zip(resident[:2], cropped[:2], strict=True):  # with colors, which amplify a level
        assert (one - other).abs().mean() < 0.02


def test_views_are_made_without_gradient_and_autocast() -> None:
    views, images = maker(), sources(4)
    draws = views.draw(0, torch.arange(4), sides(4))
    plain = views.apply([images], draws)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        cast = views.apply([images], draws)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def test_draws_and_makers_survive_pickling() -> None:
    views, images = maker(), sources(6)
    draws = views.draw(0, torch.arange(6), sides(6))
    views.compile()
    copy, again = pickle.loads(pickle.dumps((views, draws)))
    made = maker().apply([images], draws)
    assert all(torch.equal(one, other) for one, other in zip(made, copy.apply([images], again), strict=True))
    buffers = {value.untyped_storage().data_ptr() for view in again.values for op in view for value in op.values()}
    assert len(buffers) == 1


def test_a_maker_takes_one_batch_of_images_or_one_for_each_view() -> None:
    views = maker()
    with pytest.raises(ValueError, match="2 batches of images for 3 views"):
        views.apply([sources(2)] * 2, views.draw(0, torch.arange(2), sides(2)))


def test_color_operations_are_refused_for_gray_images() -> None:
    with pytest.raises(UserError, match=r"'jitter' needs images with 3 channels, but these have 1; remove it"):
        ViewMaker([spec(CROP, FLIP, *COLORS)], 1, [0.5], [0.5], 0)
    gray = ViewMaker([spec(CROP, FLIP, *COLORS[2:])], 1, [0.5], [0.5], 0)
    assert gray.apply([sources(2)[:, :1]], gray.draw(0, torch.arange(2), sides(2)))[0].shape == (2, 1, 16, 16)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_views_are_the_eager_ones() -> None:
    views, images = maker(), sources(8)
    eager = views.apply([images], views.draw(0, torch.arange(8), sides(8)))
    views.compile()
    for epoch in (1, 0):  # draws are not compiled into the code
        compiled = views.apply([images], views.draw(epoch, torch.arange(8), sides(8)))
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_cuda_are_the_cpus_and_nothing_waits() -> None:
    views, images = maker(), sources(8)
    draws = views.draw(0, torch.arange(8), sides(8))
    on_device = images.cuda()
    views.apply([on_device], draws.to("cuda"))  # copies mean and std
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = views.apply([on_device], draws.to("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(views.apply([images], draws), there, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=2e-4, rtol=0)
