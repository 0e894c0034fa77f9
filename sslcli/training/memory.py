"""Peak memory of a stretch of work, and how much of it is accounted for by what a session holds."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from .setup import Session
from .state import named_optimizer_state

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory in use since this was made: on CUDA what torch allocated, else this process's resident set.

    Attributes:
        kind: which of them. Where the system cannot start the count anew, it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = "allocated on the device"
            return
        try:
            _RESET.write_text("5")  # the kernel's word for "the high-water mark is what is resident now"
            self.kind = "resident set"
        except OSError:
            self.kind = "resident set since the process began"

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.kind == "resident set":
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes(session: Session) -> dict[str, int]:
    """Returns the bytes of resident images, of all parameters and buffers, and of the optimizer's state."""
    images = getattr(session.source, "images", None)
    state = named_optimizer_state(session.optimizer, session.method).values()
    return {
        "data set": images.nbytes if images is not None else 0,
        "parameters": sum(tensor.nbytes for tensor in (*session.method.parameters(), *session.method.buffers())),
        "optimizer state": sum(value.nbytes for value in state if isinstance(value, torch.Tensor)),
    }
