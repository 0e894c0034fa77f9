"""Any callable on an image as views: seeded by (seed, epoch, position, view), so that runs are resumed exactly."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from api_helpers import Arrays, Net, states_equal, tiny_run
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

import sslcli
from sslcli.contracts.errors import UserError
from sslcli.data.objects.transforms import Transform, TransformOperation, without_normalize, wrap_transform

SIMCLR = v1.Compose([v1.RandomResizedCrop(12), v1.RandomHorizontalFlip(), v1.ColorJitter(0.4, 0.4), v1.ToTensor()])
IMAGE = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)


def noisy(image: Image.Image) -> np.ndarray[Any, Any]:
    """Draws from three generators."""
    pixels = np.asarray(image)[:8, :8].astype(np.float64) / 255
    pixels = pixels * random.random() + np.random.random(pixels.shape) / 9
    return (pixels + torch.rand(pixels.shape).numpy() / 9).clip(0, 1)


def seeded(image: Image.Image, seed: int) -> Image.Image:
    """Draws from a generator of its own."""
    left, top = np.random.default_rng(seed).integers(0, 8, 2)
    return image.crop((left, top, left + 8, top + 8))


class Broken:
    """Fails for dark images, in a worker process too."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if not np.asarray(image).any():
            raise ZeroDivisionError("no light")
        return image


@pytest.mark.parametrize("views", [noisy, seeded, pytest.param(SIMCLR, marks=pytest.mark.slow)])
def test_a_resumed_run_is_bitwise_identical_whatever_its_workers(views, tmp_path) -> None:
    same = {"backbone": Net(), "data": Arrays(40), "views": views}
    whole = tiny_run(tmp_path / "whole", **same, training={"workers": 2})
    tiny_run(tmp_path / "parts", **same, training={"workers": 1, "max_steps": 3})
    resumed = tiny_run(tmp_path / "parts", **same, training={"workers": 0}, resume=True)
    assert states_equal(resumed.backbone(), whole.backbone())
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in whole.metrics]
    other = tiny_run(tmp_path / "other", **same, training={"workers": 0, "max_steps": 1}, seed=1)
    assert other.metrics[0]["loss"] != whole.metrics[0]["loss"]


def test_a_call_depends_on_its_seed_alone_and_leaves_all_generators_as_they_are() -> None:
    for call in (SIMCLR, noisy, seeded):
        transform = Transform(call, "python:call")
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        first, others = transform(IMAGE, 7), (random.random(), np.random.random(), torch.rand(1).item())
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert others == (random.random(), np.random.random(), torch.rand(1).item())
        assert torch.equal(transform(IMAGE, 7), first)
        assert not torch.equal(transform(IMAGE, 8), first)


def test_a_callable_makes_as_many_views_as_the_method_needs_at_its_own_size(tmp_path) -> None:
    run = tiny_run(tmp_path / "run", views=SIMCLR, training={"max_steps": 1})
    (view,) = run.config["views"]
    assert (view["count"], view["size"], run.card.image_size) == (2, 12, 12)
    (operation,) = view["operations"]
    assert operation["name"] == "python:Compose"
    assert operation["about"].startswith("Compose( RandomResizedCrop(size=(12, 12)")
    assert Transform(v1.ToTensor(), "").side() is None  # the size of its input
    assert Transform(v1.CenterCrop((8, 12)), "").side() is None


def test_each_view_can_have_its_own_callable_or_further_operations(tmp_path) -> None:
    local = v1.Compose([v1.RandomResizedCrop(8), v1.PILToTensor()])
    both = [SIMCLR, SIMCLR, {"count": 2, "operations": [local, {"name": "flip", "p": 0.5}]}]
    run = tiny_run(
        tmp_path / "run", views=both, method={"name": "dino", "head": {"hidden_dim": 8, "prototypes": 8}},
        training={"max_steps": 1},
    )  # fmt: skip
    assert [(view["count"], view["size"], len(view["operations"])) for view in run.config["views"]] == [
        (1, 12, 1), (1, 12, 1), (2, 8, 2),
    ]  # fmt: skip
    with pytest.raises(UserError, match="views: 'simclr' needs at least 2 views of an image, not 1"):
        tiny_run(tmp_path / "one", views=[{"count": 1, "operations": [SIMCLR]}])


def test_the_normalization_at_the_end_is_sslclis_and_in_the_card(tmp_path, capsys) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    given = v2.Compose([v2.RandomResizedCrop(12), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    with_end = v2.Compose([*given.transforms, v2.Normalize(mean, std)])
    same = {"backbone": Net(), "training": {"workers": 0, "max_steps": 2}}
    run = tiny_run(tmp_path / "run", views=with_end, **same)
    assert f"views: sslcli normalizes, by the mean {mean} and std {std}" in capsys.readouterr().err
    assert (list(run.card.mean), list(run.card.std), len(with_end.transforms)) == (mean, std, 4)
    expected = tiny_run(tmp_path / "expected", views=given, data={"name": Arrays(40), "mean": mean, "std": std}, **same)
    assert states_equal(run.backbone(), expected.backbone())
    chain, statistics = without_normalize(nn.Sequential(v2.CenterCrop(8), v2.Normalize(mean, std)))
    assert (len(chain), statistics) == (1, (mean, std))
    with pytest.raises(UserError, match="views: the transforms normalize by different mean and std"):
        tiny_run(tmp_path / "two", views=[with_end, v2.Compose([v2.Normalize(std, std)])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: [image, image], "python:lambda: returned a list; give a callable for each view"),
        (lambda image: image.resize((9, 12)), r"python:lambda returned 9 × 12 px for a view of 16 px: .*'size': …"),
        (v1.Compose([v1.ToTensor(), v1.Normalize(0.5, 0.1), v1.RandomErasing()]), "floating-point pixels are in"),
        (v1.RandomCrop(40), "python:RandomCrop: Required crop size"),
        (lambda image: "x", "python:lambda: a str is not an image"),
    ],
)
def test_what_a_callable_does_wrong_is_told_in_one_line_before_a_run_is_there(call, message, tmp_path) -> None:
    with pytest.raises(UserError, match=rf"^views: .*{message}.* \(image python:Arrays\[\d+\]\)$") as caught:
        tiny_run(tmp_path / "run", views=call)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_class_is_not_a_callable_on_an_image(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^views: give an instance, not the class: RandomCrop\(…\)$"):
        tiny_run(tmp_path / "run", views=[v1.RandomCrop, SIMCLR])


def test_a_failure_within_a_worker_is_one_line_too(tmp_path) -> None:
    data = Arrays(40)
    data.pixels[13] = 0
    with pytest.raises(
        UserError, match=r"^views: python:Broken: ZeroDivisionError: no light \(image python:Arrays\[13\]"
    ):
        tiny_run(tmp_path / "run", data=data, views=Broken(), training={"workers": 2})


def test_gray_images_are_given_as_gray() -> None:
    seen: list[str] = []
    transform = Transform(lambda image: seen.append(image.mode) or image, "python:lambda")
    assert transform(IMAGE[:1], 0).shape == (1, 20, 24)
    assert transform(IMAGE, 0).shape == (3, 20, 24)
    assert seen == ["L", "RGB"]


def test_an_operation_is_pickled_with_its_callable_and_a_lambda_is_called_without_workers(
    tmp_path, monkeypatch, capsys
) -> None:
    operation = wrap_transform(Transform(SIMCLR, "python:Compose"))({}, 12)
    again = pickle.loads(pickle.dumps(operation))
    assert type(again) is TransformOperation
    drawn = operation.parameters(torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[20, 24]]))
    one = {"seed": drawn["seed"][0]}
    assert torch.equal(again.apply_one(IMAGE, one), operation.apply_one(IMAGE, one))
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none=False: "spawn")
    run = tiny_run(tmp_path / "run", views=lambda image: image, training={"max_steps": 1, "workers": 2})
    assert run.config["training"]["workers"] == 0
    assert (
        "views: python:lambda is called without worker processes: it cannot be sent to them ("
        in capsys.readouterr().err
    )


def test_a_run_is_not_resumed_with_another_transform_and_needs_none_to_be_evaluated(tmp_path) -> None:
    data = {"name": "shapes", "count": 32, "size": 16}
    net = {"name": "resnet18", "width": 4, "stem": "small"}
    run = tiny_run(tmp_path / "run", views=SIMCLR, data=data, backbone=net, training={"max_steps": 1})
    other = v1.Compose([v1.RandomResizedCrop(12), v1.ToTensor()])
    with pytest.raises(UserError, match=r"views\.0\.python:Compose\.about: 'Compose"):
        tiny_run(tmp_path / "run", views=other, data=data, backbone=net, resume=True)
    assert sslcli.Run(run.path).evaluate("knn", k=[3], **{"data.limit": 16}).metrics
