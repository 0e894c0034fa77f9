"""Peak memory, the memory of the known parts of a session, and what to try if a step needs too much."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from sslcli import distributed
from sslcli.config.resolve import RunConfig

from .setup import Session
from .state import named_optimizer_state

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def less_memory(config: RunConfig) -> str:
    """Returns options with which a step needs less memory, as advice in a message."""
    training = config.training
    parts = 2 * training.accumulate
    advice = "try a smaller training.batch_size"
    if training.batch_size % (parts * distributed.world_size()) == 0:
        advice += f", or the same with training.accumulate={parts}"
    more = ["smaller views"]
    if getattr(config.backbone.options, "gradient_checkpointing", True) is False:
        more.insert(0, "backbone.gradient_checkpointing=true")
    return f"{advice}; {' and '.join(more)} help too"


class PeakMemory:
    """Peak memory since this object was created: on CUDA what torch allocated, else this process's resident set.

    Attributes:
        kind: which of the two; if the system cannot reset its counter, the peak is the one since the process started.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = "allocated on the device"
            return
        try:
            _RESET.write_text("5")  # sets the peak to what is resident now
            self.kind = "resident set"
        except OSError:
            self.kind = "resident set since the process started"

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.kind == "resident set":
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes(session: Session) -> dict[str, int]:
    """Returns the bytes of the images in memory, of all parameters and buffers, and of the optimizer's state."""
    state = named_optimizer_state(session.optimizer, session.method).values()
    return {
        "dataset": session.data_bytes,
        "parameters": sum(tensor.nbytes for tensor in (*session.method.parameters(), *session.method.buffers())),
        "optimizer state": sum(value.nbytes for value in state if isinstance(value, torch.Tensor)),
    }
