"""Which images make up which batch: a pure function of the step, the same for every source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.randomness import SORT_LIMIT, permutation


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one rank: `index[k]` is the image at position `first + k` of the epoch's order."""

    epoch: int
    first: int
    index: Tensor


@dataclass(frozen=True)
class Plan:
    """Cuts each epoch's order into global batches; an incomplete last one is left out, unless it is kept.

    The global batch of a step is a contiguous part of the epoch's order. It is cut into equal parts, by micro-batch and
    within each by rank, so that an image's position depends neither on the number of ranks nor on how often gradients
    are accumulated. So is an incomplete last one that is kept; what cannot be divided, or leaves fewer than two images
    for a part, is left out: gradients are averaged, and batch norm and gathered losses need equal parts.

    Args:
        name: the dataset's, for messages.
        length: how many images it has.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per optimizer step.
        seed: the run's.
        rank: of this process.
        world_size: how many processes there are.
        drop_last: leave out an incomplete last batch.
        set_by: the option that can raise the length, for messages.

    Raises:
        UserError: if the batch cannot be cut into equal parts or is larger than the dataset.
    """

    name: str
    length: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    set_by: str = "data.limit"

    def __post_init__(self) -> None:
        if self.batch_size % self.parts:
            raise UserError(
                f"training.batch_size: {self.batch_size} cannot be divided evenly among {self.world_size} "
                f"process(es) × {self.accumulate} micro-batch(es); set it to a multiple of {self.parts}, or change "
                "training.accumulate"
            )
        if self.batch_size > self.length:
            raise UserError(
                f"training.batch_size: {self.batch_size} is more than the {self.length} images of {self.name}; "
                f"set training.batch_size to {self.length} or less, or raise {self.set_by}"
            )

    @property
    def parts(self) -> int:
        """Micro-batches of all ranks in a step."""
        return self.accumulate * self.world_size

    @property
    def share(self) -> int:
        """Images in a micro-batch of one rank."""
        return self.batch_size // self.parts

    @property
    def last_share(self) -> int:
        """The same in an epoch's last, smaller step; 0 if there is none."""
        share = 0 if self.drop_last else self.length % self.batch_size // self.parts
        return share if share > 1 else 0

    @property
    def left_out(self) -> int:
        """Images that an epoch does not show."""
        return self.length % self.batch_size - self.last_share * self.parts

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size + (self.last_share > 0)

    def share_at(self, step: int) -> int:
        """Returns the images in a micro-batch of one rank at a step, counted from the start of the run."""
        return self.last_share if step % self.steps_per_epoch == self.length // self.batch_size else self.share

    def steps(self, step: int) -> Iterator[list[MicroBatch]]:
        """Yields this rank's micro-batches of step `step`, `step + 1`, … without end."""
        epoch, begin = divmod(step, self.steps_per_epoch)
        while True:
            order = permutation(self.seed, epoch, self.length) if self.length <= SORT_LIMIT else None
            for number in range(begin, self.steps_per_epoch):
                yield [self._micro_batch(order, epoch, number, micro) for micro in range(self.accumulate)]
            epoch, begin = epoch + 1, 0

    def _micro_batch(self, order: Tensor | None, epoch: int, number: int, micro: int) -> MicroBatch:
        share = self.share_at(number)
        first = number * self.batch_size + (micro * self.world_size + self.rank) * share
        stop = first + share
        if order is None:  # an order that is too long to keep is computed in parts
            return MicroBatch(epoch, first, permutation(self.seed, epoch, self.length, first, stop))
        return MicroBatch(epoch, first, order[first:stop])
