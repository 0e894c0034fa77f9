"""A user's own dataset: the source of its labels, how it is read, and the errors."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from api_helpers import Arrays, Net, states_equal, tiny_run
from PIL import Image
from tiny_data import tiny_root, write_cifar10  # noqa: F401  # the first is a fixture
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torchvision import datasets, transforms

from sslcli.contracts.data import channel_statistics
from sslcli.contracts.errors import SslError, UnreadableImage, UserError
from sslcli.data.objects.given import Given
from sslcli.data.objects.items import declared_labels, to_pixels
from sslcli.data.objects.wrapped import WrappedDataset, WrappedOptions, wrap_datasets

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = torch.from_numpy(PIXELS).permute(2, 0, 1)
GRAY = RGB[0]


def opened(dataset: Any, *, test: Any = None, **options: Any) -> WrappedDataset:
    given = {"train": dataset} if test is None else {"labeled": dataset, "test": test}
    held = {split: Given(each, "python:Mine") for split, each in given.items()}
    return wrap_datasets(held).open(WrappedOptions.parse({"split": next(iter(held)), **options}))


class Labeled(Arrays):
    """Has its labels and classes as attributes, like torchvision's datasets."""

    def __init__(self, count: int, seed: int = 0, size: int = 16) -> None:
        super().__init__(count, seed, size)
        self.targets = self.labels_of.tolist()
        self.classes = ["ant", "bee", "cat"]


def test_labels_are_attributes_of_the_data_set_also_within_torchs_wrappers() -> None:
    data = Labeled(10)
    assert declared_labels(data) == data.targets
    assert declared_labels(Subset(data, [3, 1])) == [data.targets[3], data.targets[1]]
    assert declared_labels(ConcatDataset([data, Subset(data, [2])])) == [*data.targets, data.targets[2]]
    assert declared_labels(TensorDataset(torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]))) == [1, 0]
    assert declared_labels(Arrays(4)) is None
    assert declared_labels(ConcatDataset([data, Arrays(4)])) is None
    data.target_transform = lambda label: 2 - label
    assert declared_labels(data) is None
    subset = opened(Subset(Labeled(10), [3, 1]))
    assert subset.info.classes == ("ant", "bee", "cat")
    assert subset.labels.tolist() == [data.targets[3], data.targets[1]]
    wrong = Labeled(30)
    wrong.targets = [(label + 1) % 3 for label in wrong.targets]
    assert opened(wrong).labels.tolist() == wrong.labels_of.tolist()  # those of the items, which are kept in memory


def test_labels_are_read_from_items_only_if_that_is_free_or_asked_for() -> None:
    class Counted(Arrays):
        read = 0

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            return super().__getitem__(index)

    data = Counted(100)
    assert opened(data, in_memory=False).labels is None
    assert data.read < 20
    assert opened(data, in_memory=False, labels="read").labels.tolist() == data.labels_of.tolist()
    assert opened(data, labels="none").labels is None
    assert opened(data).labels.tolist() == data.labels_of.tolist()


def test_class_names_as_labels_get_the_same_numbers_in_both_parts() -> None:
    def named(*names: str) -> list[Any]:
        return [(PIXELS, name) for name in names]

    train, test = named("cat", "ant", "cat"), named("bee", "cat")
    first = opened(train, test=test)
    assert (first.info.classes, first.labels.tolist()) == (("ant", "bee", "cat"), [2, 0, 2])
    other = type(first).open(type(first).labeled(first.options, "eval"))
    assert (other.info.classes, other.labels.tolist()) == (("ant", "bee", "cat"), [1, 2])


def test_images_of_one_size_are_kept_in_memory_and_others_are_not() -> None:
    alike = opened(Arrays(20))
    assert torch.equal(alike.images()[7], alike.image(7))
    assert alike.info.image_size == (16, 16)
    assert type(alike).view_size(alike.options) == 16
    mixed = opened([PIXELS, PIXELS[:4]])
    assert mixed.images() is None
    assert mixed.info.image_size is None
    assert type(mixed).view_size(mixed.options) == 224
    late = opened([PIXELS] * 50 + [PIXELS[:4]] + [PIXELS] * 50)  # not one of the sample
    assert late.images() is None
    assert late.image(50).shape == (3, 4, 7)
    with pytest.raises(UserError, match=r"data.in_memory: the images of python:Mine differ in size"):
        opened([PIXELS, PIXELS[:4]], in_memory=True)


def test_gray_images_stay_gray_unless_asked_for_color() -> None:
    grays = [Image.fromarray(GRAY.numpy())] * 4
    assert opened(grays).info.channels == 1
    assert opened(grays, channels=3).image(0).shape == (3, 5, 7)
    assert opened([*grays, PIXELS]).info.channels == 3


def test_a_data_set_with_random_pixels_is_reported_and_never_kept(caplog) -> None:
    class Noisy(Arrays):
        def __getitem__(self, index: int) -> Any:
            return np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)

    assert opened(Noisy(10)).images() is None
    assert ["random transform" in record.getMessage() for record in caplog.records] == [True]


def test_the_limit_takes_the_same_share_of_each_class() -> None:
    data = Arrays(60)
    some = opened(data, limit=30)
    assert len(some) == 30
    counts, halves = torch.bincount(some.labels), torch.bincount(torch.tensor(data.labels_of)) / 2
    assert (counts - halves).abs().max() < 1
    for index in range(30):
        original = int(some.name_of(index).removesuffix("]").rpartition("[")[2])
        assert torch.equal(some.image(index), to_pixels(data.pixels[original], 3))


def test_the_normalization_is_imagenets_given_or_measured() -> None:
    data = Arrays(20)
    assert opened(data).info.mean == (0.485, 0.456, 0.406)
    assert opened(data, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5]).info.mean == (0.1, 0.2, 0.3)
    mean, std = channel_statistics(torch.from_numpy(data.pixels).permute(0, 3, 1, 2))
    measured = opened(data, normalization="measured").info
    assert measured.mean == pytest.approx(mean, abs=1e-5)
    assert measured.std == pytest.approx(std, abs=1e-5)
    with pytest.raises(UserError, match=r"^data.mean, data.std: 1 numbers each, but images have 3 channel"):
        opened(data, mean=[0.1], std=[0.1])


class Stream(IterableDataset[Any]):
    def __iter__(self):
        yield PIXELS


class NoLength:
    def __getitem__(self, index: int) -> Any:
        return PIXELS


class Broken(Arrays):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "data: Stream cannot be indexed"),
        ((each for each in [PIXELS]), "data: generator cannot be indexed"),
        (NoLength(), "data: NoLength has no length"),
        ([], "data: list is empty"),
        (Broken(20), r"data: python:Broken\[0\]: KeyError: 'file'"),
        ([torch.randn(3, 8, 8) * 9] * 20, r"data: python:list\[0\]: floating-point pixels are in \[0, 1\]"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused_in_one_line(data, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny_run(tmp_path / "run", data=data)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Photographs(Arrays):
    """PIL images of three sizes; those in `damaged` raise Pillow's error."""

    damaged: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> Any:
        if index in self.damaged:
            raise OSError("image file is truncated")
        return Image.fromarray(self.pixels[index][: 16 - index % 3]), int(self.labels_of[index])


def test_images_of_different_sizes_train_the_same_with_worker_processes(tmp_path) -> None:
    same = {"backbone": Net(), "views": {"size": 16}}
    run = tiny_run(tmp_path / "run", data=Photographs(40), training={"workers": 2}, **same)
    expected = tiny_run(tmp_path / "expected", data=Photographs(40), training={"workers": 0}, **same)
    assert run.step == 10
    assert states_equal(run.backbone(), expected.backbone())


def test_an_unreadable_item_is_replaced_and_too_many_end_the_run(tmp_path, capsys) -> None:
    data = Photographs(40)
    data.damaged = (13,)
    views = {"size": 16}
    run = tiny_run(tmp_path / "run", data={"name": data, "max_unreadable": 0.05}, views=views, training={"workers": 0})
    assert run.step == 10
    lines = [line for line in capsys.readouterr().err.splitlines() if "unreadable image" in line]
    assert lines == ["warning: unreadable image replaced: python:Photographs[13]: OSError: image file is truncated"]
    with pytest.raises(SslError, match=r"python:Photographs\[13\]: OSError: image file is truncated"):
        tiny_run(tmp_path / "strict", data={"name": data, "max_unreadable": 0.0}, views=views, training={"workers": 0})


def test_a_pickled_data_set_is_read_again() -> None:
    data = opened(Photographs(20))
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.image(3), data.image(3))
    assert (len(again), again.info, again.labels) == (20, data.info, data.labels)
    again._given.dataset.damaged = (5,)
    with pytest.raises(UnreadableImage, match=r"python:Mine\[5\]: OSError"):
        again.image(5)


@pytest.mark.parametrize("threads", [False, True])
def test_items_are_read_one_at_a_time_unless_threads_are_allowed(threads) -> None:
    class Together(Photographs):
        inside, most = 0, 0

        def __getitem__(self, index: int) -> Any:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return super().__getitem__(index)

    images = Together(20)
    data = opened(images, threads=threads)
    images.most = 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(data.image, range(20)))
    assert (images.most > 1) is threads


def test_a_data_set_that_cannot_be_pickled_is_not_read_by_spawned_workers(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none=False: "spawn")

    class Local(Photographs):
        """Cannot be pickled, since it is defined in a function."""

    assert Given(Photographs(4), "python:Photographs").worker_obstacle() is None
    run = tiny_run(tmp_path / "run", data=Local(40), views={"size": 16}, training={"max_steps": 1, "workers": 2})
    assert run.config["training"]["workers"] == 0
    assert "python:Local is read without worker processes: it cannot be sent to them (" in capsys.readouterr().err


def test_torchvisions_cifar10_works_unchanged(tiny_root, tmp_path) -> None:  # noqa: F811
    write_cifar10(tiny_root)
    train, test = (datasets.CIFAR10(tiny_root, train=part) for part in (True, False))
    run = tiny_run(tmp_path / "run", data=train, labeled=(train, test), callbacks={"progress": None})
    assert (run.config["data"]["name"], run.config["data"]["count"]) == ("python:CIFAR10", 100)
    assert run.config["views"][0]["size"] == 32
    assert any("knn_top1" in record for record in run.metrics)
    protocol = run.evaluate("knn", k=[3]).protocol
    assert (protocol["train"]["images"], protocol["eval"]["images"]) == (100, 20)
    tensors = datasets.CIFAR10(tiny_root, train=True, transform=transforms.ToTensor())
    assert torch.equal(opened(tensors).images(), opened(train).images())


def test_labeled_data_can_be_given_for_one_evaluation(tmp_path) -> None:
    unlabeled = [image for image, _ in (Arrays(40)[index] for index in range(40))]
    run = tiny_run(tmp_path / "run", data=unlabeled)
    with pytest.raises(UserError, match=r"no labeled images|has no labels"):
        run.evaluate("knn", k=[3])
    result = run.evaluate("knn", train=Arrays(40, seed=1), eval=Arrays(20, seed=2), k=[3])
    assert (result.protocol["train"]["images"], result.protocol["eval"]["images"]) == (40, 20)
    assert result.metrics["top1"] > 0.5  # the tint depends on the class
    same = Arrays(40)
    with pytest.raises(UserError, match=r"the same|among the training images"):
        run.evaluate("knn", train=same, eval=same, k=[3])


def test_a_run_is_not_resumed_with_a_data_set_of_another_length(tmp_path) -> None:
    tiny_run(tmp_path / "run", training={"max_steps": 1})
    with pytest.raises(UserError, match=r"data.count: 40 in the run, 41 now"):
        tiny_run(tmp_path / "run", data=Arrays(41), resume=True)
