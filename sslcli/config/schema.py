"""The part of a run's configuration that does not belong to a plugin."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sslcli.contracts.options import FREE, WARN, Options

#: The sections that name one plugin, and the plugin's group.
PLUGIN_SECTIONS = {
    "method": "methods", "backbone": "backbones", "data": "datasets", "optimizer": "optimizers",
    "schedule": "schedules",
}  # fmt: skip


class Clip(Options):
    """Gradient clipping."""

    norm: float = Field(gt=0)
    """Maximum L2 norm."""
    mode: Literal["global", "per_parameter"] = "global"
    """One norm over all gradients, or each parameter's own (DINO)."""


class TrainingOptions(Options):
    """Options of the training loop."""

    epochs: int = Field(default=200, ge=1, le=10**9, json_schema_extra=FREE)
    """Number of passes over the data."""
    max_steps: int | None = Field(default=None, ge=1, json_schema_extra=FREE)
    """Save and stop after this many optimizer steps; the run can be resumed, and schedules still span `epochs`."""
    batch_size: int = Field(default=256, ge=2, json_schema_extra=WARN)
    """Images per optimizer step, over all processes and micro-batches. If it is not set and there are fewer images, it
    is the largest power of two up to their number."""
    accumulate: int = Field(default=1, ge=1, json_schema_extra=WARN)
    """Micro-batches whose gradients an optimizer step accumulates; saves memory."""
    drop_last: bool = True
    """Leave out the images of an epoch that do not fill a batch; false: its last step has fewer images, in equal parts
    for all processes and micro-batches, two or more each, and the same learning rate."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(default="auto", json_schema_extra=WARN)
    """Precision of the forward pass; auto: bf16 if the device supports it natively, else fp16 on CUDA, else fp32. What
    stays in float32 (losses, views) is exact; only tf32 uses TF32, everywhere."""
    device: str = Field(default="auto", json_schema_extra=WARN)
    """auto, cpu, cuda, cuda:N or mps; auto: CUDA if available, else the CPU."""
    channels_last: bool = Field(default=True, json_schema_extra=WARN)
    """Use the channels_last memory format, in which convolutions are fastest on CPUs and tensor cores."""
    compile: Literal["auto", "none", "views", "all"] = Field(default="auto", json_schema_extra=WARN)
    """What torch.compile compiles: the views (on a CPU those below 128 px), or all: views and backbone; auto: all, if
    there is a compiler and the run is long enough to pay off, and on CUDA in shorter runs the views. Rounding differs
    slightly from eager code."""
    cuda_graphs: bool = Field(default=False, json_schema_extra=WARN)
    """Replay compiled code as CUDA graphs: less work for the CPU, slightly more memory. Needs compile on CUDA."""
    sync_batch_norm: bool = True
    """With several processes, compute batch norm over all of them, so that results match those of one process."""
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(default="auto", json_schema_extra=FREE)
    """Worker processes that decode images that don't fit on the device; 0: none; auto: CPU cores minus one."""
    stall_timeout: float | None = Field(default=600.0, gt=0, json_schema_extra=FREE)
    """Seconds after which a worker that does not get on with an image, or one of several processes that does nothing
    while the others wait for it, is taken for hung: the run ends with a line that names it. null: never."""
    clip: Clip | None = None
    """Clip gradients before each step."""
    deterministic: bool = Field(default=False, json_schema_extra=WARN)
    """Use only deterministic kernels, so that runs on CUDA are bitwise reproducible and resumable; slower there."""
    log_every: int = Field(default=20, ge=1, json_schema_extra=FREE)
    """Steps between log lines."""
    preview: int = Field(default=8, ge=0, le=64, json_schema_extra=FREE)
    """Images of the first step, at most, that are drawn beside their views into views.png; 0: none."""

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
            raise ValueError("should be auto, cpu, cuda, cuda:N or mps")
        return value


class CheckpointOptions(Options):
    """When to save checkpoints, besides the end and any interruption."""

    every_epochs: int | None = Field(default=10, ge=1, json_schema_extra=FREE)
    """Save after this many epochs."""
    every_steps: int | None = Field(default=None, ge=1, json_schema_extra=FREE)
    """Save after this many steps."""
    every_minutes: float | None = Field(default=15.0, gt=0, json_schema_extra=FREE)
    """Save when this many minutes have passed since the last checkpoint; null: never by time."""
    keep: int = Field(default=2, ge=2, json_schema_extra=FREE)
    """Number of most recent checkpoints of `every_epochs` and `every_steps` to keep. One saved by time, or when the run
    was interrupted, is kept until the next checkpoint."""


#: What each section of a config is.
SECTION_HELP = {
    "seed": "Seed of all random numbers (order of the images, views, initial weights); 0 by default.",
    "method": "The self-supervised method, and what its loss and its heads need.",
    "backbone": "The network that is trained, and that evaluations and exports use.",
    "data": "The images to train on.",
    "views": "The views of an image: a preset with changes, or a list of views; the method's own by default.",
    "optimizer": "What updates the weights; the method's own by default.",
    "schedule": "How the learning rate changes in the run; the method's own by default, else a cosine.",
    "training": "Length of the run, batch size, precision, device, and how images are read.",
    "checkpoints": "When checkpoints are saved, and how many are kept.",
    "callbacks": "What observes the run: a mapping of names to options; null turns one off that is on by default.",
    "output": "The run directory; runs/CONFIG-HASH by default.",
}

#: Callbacks that are enabled unless a config disables them with null.
DEFAULT_CALLBACKS: dict[str, dict[str, Any]] = {
    name: {} for name in ("progress", "tensorboard", "knn", "online_probe", "collapse")
}

#: Sections for which neither the config nor the method has a value.
DEFAULTS: dict[str, Any] = {"backbone": {"name": "resnet18"}, "schedule": {"name": "cosine"}}
#: The backbone of methods that need a vision transformer.
DEFAULT_VIT: dict[str, Any] = {"name": "vit_small"}
