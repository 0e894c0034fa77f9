"""Peak memory, the memory of the known parts of a session, and what to try if a step needs too much."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from sslcli import distributed
from sslcli.config.resolve import RunConfig
from sslcli.memory import readable

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


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process; `problem` says why there is no estimate, and then the others are 0.

    Attributes:
        images: of the dataset, where it stays on the device.
        parameters: with all buffers.
        optimizer_state: after the first step.
        step: what is alive beside these at the peak: gradients, views, activations.
        free: what the device has for all of it; None where that is not known.
        problem: why it could not be estimated (an operation of a plugin needs values, for example).
    """

    images: int = 0
    parameters: int = 0
    optimizer_state: int = 0
    step: int = 0
    free: int | None = None
    problem: str = ""

    @property
    def peak(self) -> int:
        return self.images + self.parameters + self.optimizer_state + self.step

    @property
    def fits(self) -> bool | None:
        return None if self.problem or self.free is None else self.peak <= self.free

    def line(self) -> str:
        """Returns the estimate in one line."""
        if self.problem:
            return f"not estimated: {self.problem}"
        parts = f"images {readable(self.images)}, parameters {readable(self.parameters)}, optimizer state "
        parts += f"{readable(self.optimizer_state)}, gradients, views and activations {readable(self.step)}"
        verdict = {None: "", True: "; fits: ", False: "; does not fit: "}[self.fits]
        free = f"{readable(self.free)} free" if self.free is not None else ""
        return f"about {readable(self.peak)} at the peak of a step ({parts}){verdict}{free}"


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
