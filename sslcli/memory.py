"""Running out of memory, on a device or this machine: one line that says what needed it, and what to try."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sslcli.contracts.errors import SslError

#: What a plain RuntimeError says where an allocation failed: torch's for the CPU and for pinned memory, cuDNN's and
#: cuBLAS's, and sizes that are too large for a 64-bit number.
_SAID = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|ALLOC_FAILED"
    r"|Storage size calculation overflowed|Invalid buffer size|multiplication overflow|Overflow when unpacking"
)


class OutOfMemory(SslError):
    """There is not enough memory; see `out_of_memory`. The other processes of a group may have had enough."""


@contextmanager
def out_of_memory(what: str | Callable[[], str], advice: str | Callable[[], str]) -> Iterator[None]:
    """Turns a failed allocation in the block, or in the function that this decorates, into one line.

    Args:
        what: what was done: `in step 7`, `evaluating 'knn'`; or a function that says so afterward.
        advice: what to try, such as options that need less memory; or a function that says so afterward.

    Raises:
        OutOfMemory: `out of memory WHAT (SIZE asked for): ADVICE`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what, advice = (text if isinstance(text, str) else text() for text in (what, advice))
        # The frames hold tensors, which a caller who tries again with less would still be paying for.
        traceback.clear_frames(error.__traceback__)
        words = ["out of memory", what, _asked_for(error)]
        raise OutOfMemory(f"{' '.join(filter(None, words))}: {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that an allocation failed, on any device."""
    if isinstance(error, MemoryError):  # NumPy's too
        return True
    torch = sys.modules.get("torch")  # imported by whatever raises its errors
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def readable(count: int) -> str:
    """Returns a number of bytes as MiB, GiB or TiB."""
    for size, unit in ((2**40, "TiB"), (2**30, "GiB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**20:,.1f} MiB"


def _asked_for(error: BaseException) -> str:
    """The size of the allocation that failed, if the allocator says it."""
    found = re.search(r"tried to allocate ([\d.]+) (bytes|[KMGTPE]iB)", str(error), re.IGNORECASE)
    if found is None:
        return ""
    size = readable(int(found[1])) if found[2] == "bytes" else f"{found[1]} {found[2]}"
    return f"({size} more were asked for)"
