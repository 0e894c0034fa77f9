from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from sslcli.contracts.data import channel_statistics
from sslcli.datasets.shapes import FORMS, MEAN, STD, TEXTURES, Shapes, ShapesOptions, _coverage, _disk, draw


@pytest.mark.parametrize(
    ("options", "shape"), [({}, (5000, 32)), ({"split": "test"}, (1000, 32)), ({"count": 30, "size": 48}, (30, 48))]
)
def test_pictures_have_the_size_and_count_of_the_options(options: dict[str, object], shape: tuple[int, int]) -> None:
    data = Shapes(ShapesOptions.parse(options))
    count, side = shape
    assert len(data) == count
    assert data.image(count - 1).shape == (3, side, side)
    assert data.info.image_size == (side, side)
    assert Shapes.view_size(data.options) == side


def test_a_picture_depends_only_on_seed_split_and_index() -> None:
    whole = draw(3, 0, torch.arange(200), 32)
    torch.manual_seed(1)
    assert torch.equal(whole[150:157], draw(3, 0, torch.arange(150, 157), 32))
    assert torch.equal(whole[[7, 199, 40]], draw(3, 0, torch.tensor([7, 199, 40]), 32))
    data = Shapes(ShapesOptions(count=300, seed=3))
    assert torch.equal(data.image(150), whole[150])
    assert torch.equal(data.images()[:200], whole)


def test_seeds_splits_and_indices_all_differ() -> None:
    # 10 pictures on, the class is the same again
    pictures = [
        draw(seed, split, torch.tensor([index]), 32) for seed in (0, 1) for split in (0, 1) for index in (0, 10)
    ]
    for n, first in enumerate(pictures):
        for second in pictures[:n]:
            assert float((first.float() - second.float()).abs().mean()) > 10


def test_classes_are_balanced_and_named_by_texture_and_form() -> None:
    data = Shapes(ShapesOptions(count=600))
    assert data.info.classes is not None
    assert len(data.info.classes) == len(FORMS) * len(TEXTURES)
    assert set(data.labels.bincount().tolist()) == {600 // len(data.info.classes)}
    assert set(data.info.classes) == {f"{texture} {form}" for texture in TEXTURES for form in FORMS}


def edge_shares() -> dict[str, float]:
    """Share of a class's pixels that are at an edge of light."""
    data = Shapes(ShapesOptions(count=1000))
    assert data.info.classes is not None
    light = torch.nn.functional.avg_pool2d(data.images().float().mean(dim=1, keepdim=True), 3, 1)  # without the grain
    down, across = light[..., 1:, :-1] - light[..., :-1, :-1], light[..., :-1, 1:] - light[..., :-1, :-1]
    edges = (down.abs() + across.abs() > 20).float().mean(dim=(1, 2, 3))
    return {name: float(edges[data.labels == label].mean()) for label, name in enumerate(data.info.classes)}


def test_labels_are_of_the_texture_and_the_form_that_were_drawn() -> None:
    edges = edge_shares()
    for form in FORMS:
        patterned = [edges[f"{texture} {form}"] for texture in TEXTURES if texture != "plain"]
        assert edges[f"plain {form}"] < 0.8 * min(patterned)
    # A cross has the area of a disk and 1.4 times its outline.
    assert edges["plain cross"] > 1.15 * edges["plain disk"]


def test_textures_are_distances_to_the_patterns_they_are_named_after() -> None:
    # By hand: at the object's center, and a quarter and half a period from it.
    s, still = torch.tensor([[[0.0, 0.25, 0.5]]]), torch.zeros(1, 1, 1)
    expected = {
        "plain": [-1, -1, -1],
        "stripes": [-0.25, 0, 0.25],
        "dots": [-0.33, -0.08, 0.17],
        "rings": [-0.25, 0, 0.25],
    }
    for texture, values in expected.items():
        found = TEXTURES[texture](s, torch.zeros_like(s), still, still).flatten()
        assert torch.allclose(found, torch.tensor(values, dtype=torch.float32), atol=1e-6), texture
    checker = TEXTURES["checker"](s, torch.full_like(s, 0.5), still, still).flatten()
    assert torch.equal(checker < 0, torch.tensor([True, False, False]))


def test_neither_light_nor_color_reveals_the_form() -> None:
    data = Shapes(ShapesOptions(count=2400))
    colors = data.images().float().mean(dim=(2, 3)) / 255
    for form in range(len(FORMS)):
        of_form = colors[data.labels // len(TEXTURES) == form]
        assert float((of_form.mean(dim=0) - colors.mean(dim=0)).abs().max()) < 0.02


def test_statistics_that_views_are_normalized_with_are_those_of_the_pictures() -> None:
    mean, std = channel_statistics(Shapes(ShapesOptions(count=1000)).images())
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, abs=0.01)


def test_limit_takes_the_same_share_of_each_class_and_draws_the_same_pictures() -> None:
    whole, part = Shapes(ShapesOptions(count=240, size=16)), Shapes(ShapesOptions(count=240, size=16, limit=50))
    assert part.labels.bincount().tolist() == [5] * 10
    images = whole.images()
    for index in (0, 17, 49):
        picture = part.image(index)
        twins = [n for n in range(240) if torch.equal(images[n], picture)]
        assert [int(whole.labels[n]) for n in twins] == [int(part.labels[index])]
    assert torch.equal(part.images()[17], part.image(17))


def test_count_applies_only_to_the_split_it_was_given_for() -> None:
    options = ShapesOptions(count=200, seed=4, limit=50)
    assert Shapes.labeled(options, "train") == options
    assert Shapes.labeled(options, "eval") == ShapesOptions(split="test", seed=4)


@pytest.mark.parametrize("wrong", [{"size": 8}, {"count": 0}, {"split": "val"}, {"seed": -1}, {"count": "9"}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ShapesOptions.parse(wrong)


def test_edges_are_antialiased() -> None:
    # A disk of radius r pixels covers πr² of them: counting whole pixels alone would be off by more.
    axis = (torch.arange(64, dtype=torch.float32) * 2 + 1) / 64 - 1
    x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
    covered = float(_coverage(_disk(x / 0.5, y / 0.5) * 0.5, 2 / 64).sum())
    assert covered == pytest.approx(math.pi * (0.45 * 32) ** 2, rel=0.002)
