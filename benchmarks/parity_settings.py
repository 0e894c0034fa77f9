"""What both tools are trained with by `parity.py`, and how they still differ.

A run of ours is `examples/configs/cifar10/METHOD.yaml` with `COMMON` and the method's entry of `SETTINGS` above it.
lightly's run is made from the resolved config of ours, so nothing is stated twice.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sslcli.config.document import read_file
from sslcli.config.merge import as_arguments
from sslcli.config.resolve import RunConfig, load_config

CONFIGS = Path(__file__).parents[1] / "examples" / "configs" / "cifar10"
#: Part of a run's settings: raise it when what a run does changes in a way that the settings don't show.
REVISION = 1
BATCH = 128
#: That of lightly's transforms but DINO's. Their blur is Pillow's, another one than ours, so there is none here.
BILINEAR = {"interpolation": "bilinear"}
#: Sections are merged with the example's, so what must not stay is named.
PLAIN = {"scale_lr": "none", "exclude": ["norm", "bias"]}
SGD = {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 5e-4, **PLAIN}
ADAMW = {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-4, **PLAIN}
#: BYOL's own views; with Barlow Twins and VICReg on CIFAR as well.
ASYMMETRIC = {"preset": "cifar_asym", **BILINEAR}

COMMON: dict[str, Any] = {
    "backbone": {"name": "resnet18", "width": 16, "zero_init_residual": False},
    "training.batch_size": BATCH,
    "training.clip": None,
    "training.log_every": 13,
    "checkpoints.every_epochs": None,
    "checkpoints.every_minutes": None,
    "callbacks": {"tensorboard": None, "progress": None, "knn": None, "online_probe": None, "collapse": None},
}
#: For a few hundred steps on images of 32 px: momentum encoders that follow within them, and small heads and queues.
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {
        "method": {"name": "simclr", "temperature": 0.2, "projector": {"hidden_dim": 512}},
        "views": {"preset": "simclr", **BILINEAR},
        "optimizer": SGD,
    },
    "byol": {
        "method": {
            "name": "byol",
            "momentum": 0.99,
            "momentum_step": "next",
            "projector": {"hidden_dim": 512, "last_bias": True},
            "predictor": {"hidden_dim": 512, "last_bias": True},
        },
        "views": ASYMMETRIC,
        "optimizer": ADAMW,
    },
    "simsiam": {
        "method": {
            "name": "simsiam",
            "projector": {"layers": 3, "hidden_dim": 512, "output_dim": 512},
            "predictor": {"hidden_dim": 128, "constant_lr": False},
        },
        "views": {"preset": "moco_v2", "blur": 0.0, **BILINEAR},
        "optimizer": SGD,
    },
    "moco_v2": {
        "method": {
            "name": "moco_v2",
            "temperature": 0.2,
            "queue_size": 2048,
            "momentum": 0.99,
            "final_momentum": None,
            "symmetric": False,
            "projector": {"hidden_dim": 512, "output_dim": 128},
        },
        "views": {"preset": "moco_v2", "blur": 0.0, **BILINEAR},
        "optimizer": SGD,
    },
    "swav": {
        "method": {
            "name": "swav",
            "prototypes": 100,
            "epsilon": 0.02,
            "frozen_steps": 20,
            "queue_size": 0,
            "projector": {"hidden_dim": 512},
        },
        "views": {"preset": "simclr", "crop_scale": [0.14, 1.0], **BILINEAR},
        "optimizer": SGD,
    },
    "dino": {
        "method": {
            "name": "dino",
            "momentum": 0.99,
            "momentum_step": "next",
            "freeze_last_layer_epochs": 1,
            "teacher_temperature": 0.04,
            "teacher_temperature_start": 0.04,
            "head": {"hidden_dim": 512, "bottleneck_dim": 128, "prototypes": 256, "norm": "batch"},
        },
        "views": {**ASYMMETRIC, "crop_scale": [0.14, 1.0], "interpolation": "bicubic"},  # as lightly's transform has it
        "optimizer": ADAMW,
    },
    "barlow_twins": {
        "method": {"name": "barlow_twins", "projector": {"hidden_dim": 512, "output_dim": 512}},
        "views": ASYMMETRIC,
        "optimizer": ADAMW,
    },
    "vicreg": {
        "method": {"name": "vicreg", "projector": {"hidden_dim": 512, "output_dim": 512}},
        "views": {**ASYMMETRIC, "crop_scale": [0.2, 1.0], "solarize": 0.1},
        "optimizer": ADAMW,
    },
}
METHODS = tuple(SETTINGS)
#: Of ours: `defaults` is what is done when nothing is said, which depends on the processor; `fp32` is what lightly does
#: then, to tell whether a difference is one of precision.
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"training.precision": "fp32", "training.compile": "none", "training.channels_last": False},
    "defaults": {},
}
#: What is not the same, or was made so, by method.
DIFFERENCES: dict[str, str] = {
    "all": "lightly's views are made from 8-bit images that are rounded after every operation; ours are not",
    "simclr": "the shift of lightly's last batch norm is removed",
    "byol": "`momentum_step: next`, since lightly's momentum encoder follows at the beginning of a step",
    "simsiam": "the predictor's learning rate decays too (`constant_lr: false`)",
    "moco_v2": "one direction, as in lightly's ImageNet script",
    "swav": "the bias of lightly's prototypes is removed; batch norms see both views together, as in SwAV's code, "
    "while lightly's script passes one at a time; no queue",
    "dino": "`momentum_step: next`; bicubic crops, as lightly's transform has them; no clipping",
    "barlow_twins": "the bias of lightly's last layer is removed; one view at a time, as in Barlow Twins' code and "
    "lightly's CIFAR-10 script, while its ImageNet script passes both together",
    "vicreg": "likewise",
}


def overrides(method: str, kind: str, images: int, epochs: int) -> dict[str, Any]:
    """Returns what is set above the example's config, by dotted key, without the folder of the images and the seed.

    The warm-up of an epoch is that of lightly's schedule, whose first step already has a share of the learning rate.
    """
    steps = max(images // BATCH, 1)
    warmup = {"warmup": "linspace", "warmup_epochs": 1, "warmup_start": 1 / steps, "warmup_start_lr": None}
    replaced = {
        "schedule": {"name": "cosine", **warmup},
        "data": {"name": "cifar10", "limit": images},
        "training.epochs": epochs,
    }
    return {**COMMON, **KINDS[kind], **replaced, **SETTINGS[method]}


def digest(method: str, kind: str, images: int, epochs: int) -> str:
    """Returns what identifies a run's settings: a hash of the example's config and of what is set above it."""
    example = read_file(CONFIGS / f"{method}.yaml").data
    settings = {"revision": REVISION, "example": example, "set": overrides(method, kind, images, epochs)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def resolved(method: str, kind: str, images: int, epochs: int, root: Path, seed: int) -> RunConfig:
    """Returns the config of ours, from which lightly's run is made too."""
    values = {**overrides(method, kind, images, epochs), "data.root": str(root), "seed": seed}
    return load_config(CONFIGS / f"{method}.yaml", as_arguments(values))
