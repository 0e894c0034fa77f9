"""Counts images that could not be read, and ends the run when there are too many."""

from __future__ import annotations

from collections.abc import Iterable

from sslcli.contracts.errors import SslError

from .crops import Crops

#: The share is not computed of fewer images than this.
_ENOUGH = 1000
_SHOWN = 10


class Unreadable:
    """Counts each image once, however often it is tried.

    Args:
        length: images in the data set.
        limit: the largest share of them that may be unreadable.
    """

    def __init__(self, length: int, limit: float) -> None:
        self.length, self.limit = length, limit
        self.messages: dict[int, str] = {}
        self.seen = 0

    def add(self, parts: Iterable[Crops]) -> None:
        """Counts what new crops report.

        Raises:
            SslError: with the names, if there are too many among the images seen so far (but at least 1,000, or the
                whole data set), or none at all could be read.
        """
        for part in parts:
            self.seen += len(part.index)
            self.messages.update(part.unreadable)
            seen = min(self.length, max(self.seen, _ENOUGH))
            if part.exhausted or len(self.messages) > self.limit * seen:
                raise SslError(self._complaint(seen))

    def _complaint(self, seen: int) -> str:
        shown = list(self.messages.values())[:_SHOWN]
        if len(self.messages) > _SHOWN:
            shown.append(f"and {len(self.messages) - _SHOWN} more")
        return (
            f"{len(self.messages)} of {seen:,} images cannot be read, more than data.max_unreadable={self.limit:g} "
            f"allows; repair or remove them, or raise it: {'; '.join(shown)}"
        )
