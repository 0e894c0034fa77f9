"""Features that several processes compute together are bitwise those of one, in order, whatever cannot be read."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained
from process_group import in_group

from sslcli import distributed
from sslcli.contracts.errors import SslError, UserError
from sslcli.data.identity import identify
from sslcli.evaluation.extraction import extract_features, feature_blocks, normalizer
from sslcli.evaluation.sharing import opened_alike
from sslcli.evaluation.subject import FrozenSubject
from sslcli.training.group import losses_named

CPU = torch.device("cpu")
INPUTS = SimpleNamespace(device=CPU, image_size=8, normalize=normalizer((0.5,) * 3, (0.25,) * 3, CPU))
COUNT, BATCH = 205, 16  # 13 blocks: on two processes and on four the last round has one, which is not full


def images(*damaged: int, resident: bool = False) -> InMemory:
    data = InMemory(torch.arange(COUNT) % 3, COUNT, resident=resident)
    data.damaged = set(damaged)
    return data


def network() -> TinyBackbone:
    torch.manual_seed(0)
    return TinyBackbone()


def computed(data: InMemory) -> tuple[torch.Tensor, torch.Tensor] | str:
    """Features and labels, or the error."""
    try:
        found = extract_features(network(), data, INPUTS, BATCH, shared=True)
    except UserError as error:
        return str(error)
    return found.features, found.labels


def ended_early(data: InMemory) -> int:
    """The blocks that the main process took before it closed the iterator, in the first round."""
    with closing(feature_blocks(network(), data, INPUTS, BATCH, shared=True)) as blocks:
        return len([block for block, _ in zip(blocks, range(1), strict=False)])


class Failing(TinyBackbone):
    """Runs out of memory for the block with the numbers 16 to 31, which is process 1's."""

    def forward(self, x, mask=None):
        if distributed.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def failed() -> str:
    try:
        extract_features(Failing(), images(), INPUTS, BATCH, shared=True)
    except distributed.SslError as error:
        return str(error)
    return ""


def led(rank: int) -> tuple[torch.Tensor, list[str]] | None:
    """The main process computes features twice, between errors that only it meets."""
    subject = FrozenSubject(trained(network()), images(3), images(*range(9)), CPU, batch_size=BATCH)
    said = []

    def lead():
        features = subject.features("train").features
        try:
            subject.features("eval")
        except UserError as error:
            said.append(str(error))
        return features, said

    return distributed.lead(lead, lambda order: subject.assist(order[1]))


def member(rank: int) -> dict[str, object]:
    return {
        "resident": computed(images(resident=True)),
        "read": computed(images()),
        "damaged": computed(images(17, 40)),
        "too many": computed(images(7, 17, 40)),
        "a block": computed(InMemoryOfWhichABlockIsDamaged()),
        "ended": ended_early(images()),
        "failed": failed() if distributed.world_size() > 1 else "",
        "led": led(rank),
    }


class InMemoryOfWhichABlockIsDamaged(InMemory):
    """Nothing of the second block, on process 1, can be read, and that is allowed."""

    def __init__(self) -> None:
        super().__init__(torch.arange(COUNT) % 3, COUNT, resident=False)
        self.damaged = set(range(BATCH, 2 * BATCH))
        object.__setattr__(self.options, "max_unreadable", 0.5)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_features_of_several_processes_are_those_of_one(world, tmp_path):
    one = member(0)
    main, *others = in_group(world, member, tmp_path)
    for case in ("resident", "read", "damaged", "a block"):
        assert torch.equal(main[case][0], one[case][0]), case
        assert torch.equal(main[case][1], one[case][1]), case
        assert all(len(other[case][0]) == 0 for other in others)
    assert len(one["a block"][0]) == COUNT - BATCH
    assert "more than 1% of the 205 images cannot be read, the first one: 7.png" in one["too many"]
    assert {found["too many"] for found in (main, *others)} == {one["too many"]}
    assert main["ended"] == one["ended"] == 1
    assert [other["ended"] for other in others] == [0] * (world - 1)
    lines = {found["failed"] for found in (main, *others)}
    assert lines == {"out of memory computing features on process 1: try a smaller batch_size"}
    assert torch.equal(main["led"][0], one["led"][0])
    assert main["led"][1] == one["led"][1] != []
    assert [other["led"] for other in others] == [None] * (world - 1)


def lacking(count: int) -> InMemory:
    return InMemory(torch.arange(count) % 3, count)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (lacking(8), "memory: 9 images on process 0, 8 on process 1; give all processes the same data"),
        (InMemory(None, 9), "memory: other images or labels on process 1; give all processes the same data"),
    ],
)
def test_other_images_on_a_process_are_an_error_on_all(monkeypatch, other, line):
    monkeypatch.setattr("sslcli.evaluation.sharing.is_distributed", lambda: True)
    found = [identify(lacking(9)), identify(other)]
    monkeypatch.setattr("sslcli.evaluation.sharing.gather_objects", lambda own: [[found[0]], [found[1]]])
    for data in (lacking(9), other):
        with pytest.raises(SslError) as caught:
            opened_alike(lambda data=data: [data])
        assert str(caught.value) == line
        assert caught.value.shared
    found[1] = found[0]
    assert len(opened_alike(lambda: [lacking(9)])[0]) == 9


def refused(work) -> str:
    try:
        work()
    except (SslError, ValueError) as error:
        return str(error)
    return ""


class Wrong(TinyBackbone):
    """A plugin's own error, on process 1 alone."""

    def forward(self, x, mask=None):
        if distributed.rank() == 1:
            raise ValueError("wrong shape")
        return super().forward(x)


@pytest.mark.slow
def test_what_one_process_meets_ends_all(tmp_path):
    def missing() -> list[InMemory]:
        if distributed.rank() == 1:
            raise UserError("no such folder")
        return [images()]

    def other(rank: int) -> list[str]:
        return [
            refused(lambda: opened_alike(lambda: [lacking(9 - rank)])),
            refused(lambda: opened_alike(missing)),
            refused(lambda: extract_features(Wrong(), images(), INPUTS, BATCH, shared=True)),
        ]

    first, second = in_group(2, other, tmp_path, timeout=120)
    assert first[:2] == second[:2]
    assert first[0].startswith("memory: 9 images on process 0, 8 on process 1")
    assert first[1] == "no such folder"
    assert (first[2], second[2]) == ("process 1 failed: ValueError: wrong shape", "wrong shape")


@pytest.mark.parametrize("shared", [True, False])
def test_only_errors_of_all_processes_are_left_to_the_main_one(monkeypatch, shared):
    given = iter([("features",), None])
    for name, value in (("is_distributed", lambda: True), ("rank", lambda: 1), ("_waiting", lambda: None)):
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr(distributed, "_ordered", lambda *_: next(given))

    def assist(order: str) -> None:
        error = UserError(order)
        error.shared = shared or error.shared
        raise error

    assert refused(lambda: distributed.lead(lambda: None, assist)) == ("" if shared else "features")


@pytest.mark.slow
def test_an_error_of_assist_alone_ends_all(tmp_path):
    def assist(given: str) -> None:
        raise UserError("no such folder")

    def main() -> None:
        distributed.order("features")
        torch.distributed.barrier()

    def member(rank: int) -> str:
        with losses_named():
            distributed.lead(main, assist)
        return "went on"

    def ended(rank: int) -> str:
        try:
            return member(rank)
        except SslError as error:
            return str(error)

    first, second = in_group(2, ended, tmp_path, timeout=120)
    assert first.startswith("the other processes cannot be reached")
    assert second == "no such folder"
