"""Features that several processes compute together: each its own blocks, which the main process gets in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

from sslcli.contracts.data import Dataset
from sslcli.contracts.errors import SslError, UnreadableImage, UserError
from sslcli.data.decode import most_unreadable
from sslcli.data.identity import identify
from sslcli.distributed import gather_objects, is_distributed, rank, together, world_size
from sslcli.memory import out_of_memory

#: What a process says before the blocks of a round are sent: it has one, it has failed, or nobody wants the rest.
_HAS, _FAILED, _CLOSED = range(3)


class Unreadable:
    """The images of a dataset that cannot be read: with too many, a result would no longer represent it.

    Args:
        data: the dataset.
        shared: this process reads a part of it; `check_all` decides then.
    """

    def __init__(self, data: Dataset, *, shared: bool = False) -> None:
        self.name, self.count, self.shared = data.info.name, len(data), shared
        self.limit: float = getattr(data.options, "max_unreadable", 0.01)
        self.found: list[tuple[int, UnreadableImage]] = []

    def add(self, found: Iterable[tuple[int, UnreadableImage]]) -> None:
        """Takes more of them, with their indices; UserError if there are too many."""
        self.found += found
        if not self.shared:
            self._check(len(self.found), self.found)

    def check_all(self, total: int) -> None:
        """The same on all processes, which have found `total`: a collective if these are too many."""
        if self._too_many(total):
            first = [found for each in gather_objects(self.found[:1]) for found in each]
            self._check(total, sorted(first, key=lambda found: found[0]))

    def _too_many(self, total: int) -> bool:
        return total > most_unreadable(self.limit, self.count)

    def _check(self, total: int, found: list[tuple[int, UnreadableImage]]) -> None:
        if self._too_many(total):
            error = UserError(
                f"{self.name}: more than {100 * self.limit:g}% of the {self.count:,} images cannot be read, the first "
                f"one: {found[0][1]}; repair or remove them, or raise data.max_unreadable"
            )
            error.shared = self.shared
            raise error


def opened_alike(work: Callable[[], Sequence[Dataset]]) -> Sequence[Dataset]:
    """Returns the datasets that `work` opens, on all processes at the same time.

    A copy of the data that lacks a file has other images behind the same indices, and nothing else would notice.

    Raises:
        SslError: `work` has raised it on any process, or they see other images; on all processes.
    """
    found = together(work)
    if not is_distributed():
        return found
    everywhere = gather_objects(together(lambda: [identify(data) for data in found]))
    for process, theirs in enumerate(everywhere):
        for data, mine, other in zip(found, everywhere[0], theirs, strict=True):
            if mine != other:
                counts = f"{mine['images']:,} images on process 0, {other['images']:,} on process {process}"
                what = counts if mine["images"] != other["images"] else f"other images or labels on process {process}"
                error = SslError(f"{data.info.name}: {what}; give all processes the same data")
                error.shared = True
                raise error
    return found


def in_order(
    own: Iterator[tuple[Tensor, Tensor]], count: int, device: torch.device, unreadable: Unreadable | None = None
) -> Generator[tuple[Tensor, Tensor]]:
    """Yields all processes' blocks in order on the main process, and nothing on the others; all must call it.

    Block i is that of process i modulo their number. A round is one block of each, computed at the same time, and as
    many are in memory. An error on any process is raised on all of them. If the main process stops early (`close`),
    the others end without an error.

    Args:
        own: this process's blocks, features (n, D) and indices (n,) int64; n may be 0.
        count: blocks of all processes.
        device: where the main process wants the features.
        unreadable: this process's, of the images that the blocks are of.
    """
    for first in range(0, count, world_size()):
        features, indices = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        problem: SslError | None = None
        failure: Exception | None = None
        try:
            if first + rank() < count:
                with out_of_memory(f"computing features on process {rank()}", "try a smaller batch_size"):
                    features, indices = next(own)
        except SslError as error:
            problem = error
        except Exception as error:  # of a plugin, for example: raised here, after the others know
            problem, failure = SslError(f"process {rank()} failed: {type(error).__name__}: {error}"), error
        bad = 0 if unreadable is None else len(unreadable.found)
        headers = _headers([_FAILED if problem else _HAS, len(indices), features.shape[-1], bad])
        states = [state for state, *_ in headers]
        if _CLOSED in states:
            return
        if _FAILED in states:
            raised = next(found for found in gather_objects(problem) if found is not None)
            if failure is not None:
                raise failure
            raised.shared = True
            raise raised
        if unreadable is not None:
            unreadable.check_all(sum(header[3] for header in headers))
        if rank() == 0:
            blocks = [(features, indices)]
            blocks += [_received(process, headers[process], device) for process in range(1, world_size())]
            try:
                yield from (block for block in blocks if len(block[1]))
            except GeneratorExit:
                if first + world_size() < count:
                    with suppress(RuntimeError):  # the others may be gone
                        _headers([_CLOSED, 0, 0, 0])
                raise
        elif len(indices):
            dist.send(features.contiguous(), 0)
            dist.send(indices, 0)


def _headers(own: list[int]) -> list[list[int]]:
    header = torch.tensor(own)
    headers = [torch.empty_like(header) for _ in range(world_size())]
    dist.all_gather(headers, header)
    return [each.tolist() for each in headers]


def _received(process: int, header: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    _, rows, dim, _ = header
    features, indices = torch.empty(rows, dim, device=device), torch.empty(rows, dtype=torch.int64)
    if rows:
        dist.recv(features, process)
        dist.recv(indices, process)
    return features, indices
