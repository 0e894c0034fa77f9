"""Worker processes: how many, how far they read ahead, and how they end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import islice

import pytest
import torch
from source_helpers import Uneven, assert_all_same, opened, take, views
from torch import Tensor

from sslcli.contracts.data import DataInfo, Dataset, DatasetOptions
from sslcli.contracts.errors import SslError
from sslcli.contracts.source import SourceBatch
from sslcli.data import workers as workers_module
from sslcli.data.plan import Plan
from sslcli.data.processes import worker_count
from sslcli.data.workers import WorkerSource

BATCH = 8


class SlowDisk(Dataset):
    """Images of different sizes; reading one counts, and waits while its disk stalls."""

    def __init__(self, length: int) -> None:
        super().__init__(DatasetOptions())
        self.info = DataInfo("slow", 3, None, (0.5,) * 3, (0.5,) * 3)
        self.length = length
        self.reads = multiprocessing.Value("l", 0)
        self.stalled = multiprocessing.Value("l", -1)
        self.waiting = multiprocessing.Event()
        self.again = multiprocessing.Event()

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        if index == self.stalled.value:
            self.waiting.set()
            assert self.again.wait(60)
        with self.reads.get_lock():
            self.reads.value += 1
        return torch.full((3, 10 + index % 7, 12), index % 256, dtype=torch.uint8)


def source_of(data: Dataset, workers: int) -> WorkerSource:
    return WorkerSource(data, torch.device("cpu"), Plan("slow", len(data), BATCH), views(8), workers)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SLICE", 4)  # two for each batch


def images(batches: list[list[SourceBatch]]) -> list[Tensor]:
    return [view for (batch,) in batches for view in batch.images]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_two_batches_ahead_and_no_more(workers: int, small_slices: None) -> None:
    data = SlowDisk(80)
    source = source_of(data, workers)
    try:
        batches = source.batches(0)
        for held in range(1, 4):
            next(batches)
            assert eventually(lambda: data.reads.value >= BATCH * (held + 2))  # noqa: B023 (called at once)
            time.sleep(0.05)  # would go on if nothing held it back
            assert data.reads.value == BATCH * (held + 2)
    finally:
        source.close()


def test_what_was_read_ahead_is_used_while_the_disk_stalls_and_nothing_is_lost(small_slices: None) -> None:
    expected = source_of(SlowDisk(80), 0)
    whole = list(islice(expected.batches(0), 6))
    data = SlowDisk(80)
    (stalls,) = whole[3]
    data.stalled.value = int(stalls.index[0])
    source = source_of(data, 2)
    try:
        batches = source.batches(0)
        found = [next(batches)]
        assert eventually(lambda: data.reads.value == BATCH * 3)
        found.append(next(batches))  # asks for the batch that stalls
        assert data.waiting.wait(30)
        found.append(next(batches))  # and this was there before
        # The other worker does not wait for the first: its half of the batch that stalls, and of the one after it.
        assert eventually(lambda: data.reads.value == BATCH * 4)
        data.again.set()
        found += islice(batches, 3)
    finally:
        data.again.set()
        source.close()
    assert all(torch.equal(one, other) for one, other in zip(images(whole), images(found), strict=True))


def test_workers_stay_from_epoch_to_epoch(small_slices: None) -> None:
    source = source_of(SlowDisk(24), 2)
    try:
        batches = source.batches(0)
        next(batches)
        before = {child.pid for child in multiprocessing.active_children()}
        epochs = {batch.epoch for (batch,) in islice(batches, 10)}
        assert {child.pid for child in multiprocessing.active_children()} == before
        assert len(before) == 2
        assert epochs == {0, 1, 2, 3}
    finally:
        source.close()


def test_close_ends_the_workers() -> None:
    with opened(Uneven(50), 8, workers=2) as source:
        batches = source.batches(0)
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        source.close()
        assert multiprocessing.active_children() == []
        source.close()


def test_signals_to_the_process_group_are_left_to_the_main_process() -> None:
    data = Uneven(50)
    with opened(data, 8, workers=1) as source:
        batches = source.batches(0)
        found = [next(batches)]
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
            os.kill(child.pid, signal.SIGTERM)
            os.kill(child.pid, signal.SIGHUP)
        found += islice(batches, 20)
    assert_all_same(take(data, 0, 21, 8), found)


def test_a_killed_worker_is_named_with_a_remedy_when_its_result_is_awaited() -> None:
    with opened(Uneven(50), 8, workers=1) as source:
        batches = source.batches(0)
        next(batches)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        sum(range(1000))  # torch's handler would raise here
        said = rf"^a worker process died \(pid {child.pid}, killed by SIGKILL[^\n]*training\.workers[^\n]*$"
        with pytest.raises(SslError, match=said):
            list(islice(batches, 100))
    assert multiprocessing.active_children() == []


class Ends(SlowDisk):
    """Its fourth image ends the process that reads it, or hangs."""

    hangs = False

    def image(self, index: int) -> Tensor:
        if index == 3 and self.hangs:
            signal.pause()
        if index == 3:
            sys.exit(0)
        return super().image(index)

    def name_of(self, index: int) -> str:
        return f"disk/{index}.jpg"


def test_a_worker_that_ends_by_itself_is_named_with_what_it_was_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data.dataloader._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    source = source_of(Ends(16), 2)
    try:
        said = r"^a worker process died \(pid \d+, ended by itself with exit code 0 while it was reading disk/3\.jpg\)"
        with pytest.raises(SslError, match=said):
            list(islice(source.batches(0), 3))
    finally:
        source.close()


def test_results_that_find_no_shared_memory_are_one_line_and_no_hang(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)\nfor file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    source = source_of(SlowDisk(16), 2)
    try:
        with pytest.raises(
            SslError, match=r"^a worker [^\n]*shared memory[^\n]*: /dev/shm is full; [^\n]*workers[^\n]*$"
        ):
            next(source.batches(0))
    finally:
        source.close()
    assert capfd.readouterr().err == ""


def test_workers_that_cannot_be_started_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    source = source_of(SlowDisk(16), 2)
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    try:
        with pytest.raises(SslError, match=r"^worker processes cannot be started \(No space [^\n]*/dev/shm is full; "):
            next(source.batches(0))
    finally:
        source.close()
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_worker_that_hangs_is_named_and_killed_while_others_that_are_slow_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.utils.data.dataloader._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    data = Ends(16)
    data.hangs = True
    source = source_of(data, 2)
    source.stall_timeout = 0.4
    try:
        said = r"^worker process \d+ hung for 0\.4 s while it was reading disk/3\.jpg and was killed: [^\n]+$"
        with pytest.raises(SslError, match=said):
            list(islice(source.batches(0), 3))
    finally:
        source.close()
    assert multiprocessing.active_children() == []


def test_a_stopped_worker_is_found_though_it_says_nothing_about_an_image(small_slices: None) -> None:
    source = source_of(SlowDisk(80), 1)
    source.stall_timeout = 0.4
    try:
        batches = source.batches(0)
        next(batches)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(SslError, match=rf"^worker process {child.pid} hung for 0\.4 s"):
            list(islice(batches, 20))
    finally:
        source.close()
    assert multiprocessing.active_children() == []


def test_a_slow_disk_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(SlowDisk):
        def image(self, index: int) -> Tensor:
            time.sleep(0.05)
            return super().image(index)

    source = source_of(Slow(32), 1)
    source.stall_timeout = 0.3  # a batch takes longer
    try:
        assert len(list(islice(source.batches(0), 3))) == 3
    finally:
        source.close()


def test_auto_leaves_a_core_to_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert worker_count("auto") == 15
    assert worker_count("auto", 4) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert worker_count("auto", 64) == 7
    assert worker_count(5) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert worker_count("auto") == 1


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches() -> None:
    expected = take(Uneven(50), 0, 3, 8)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert_all_same(expected, take(Uneven(50), 0, 3, 8, workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)
