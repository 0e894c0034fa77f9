"""MAE's and DeiT's settings, as their authors' code trains on ImageNet: `protocol=NAME`.

`tests/evaluators/test_finetune_protocols.py` holds every value.
"""

from __future__ import annotations

from typing import Any

from sslcli.contracts.evaluation import Published

#: What both have. Those that neither sets are timm's defaults, which are the options' own.
_COMMON: dict[str, Any] = {
    "batch_size": 1024,
    "optimizer": {"name": "adamw", "weight_decay": 0.05, "scale_lr": "batch/256"},
    "views": {
        "preset": "probe_train",
        "interpolation": "bicubic",
        # rand-m9-mstd0.5-inc1; a warp shows the mean color of ImageNet.
        "randaugment": {
            "p": 0.5,
            "layers": 2,
            "magnitude": 9.0,
            "magnitude_std": 0.5,
            "interpolation": "bicubic",
            "fill": [0.485, 0.456, 0.406],
        },
        "random_erasing": 0.25,
    },
    "drop_path": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "interpolation": "bicubic",
}

PROTOCOLS = {
    "mae": Published(
        "facebookresearch/mae, FINETUNE.md (ViT-B) and the defaults of main_finetune.py",
        {
            **_COMMON,
            "epochs": 100,
            "lr": 5e-4,
            "schedule": {"name": "cosine", "warmup_epochs": 5.0, "final_lr": 1e-6},
            "layer_decay": 0.65,
            "feature": "tokens",
        },
    ),
    # Its lr of 5e-4 is for 512 images.
    "deit": Published(
        "facebookresearch/deit, the defaults of main.py; README_deit.md (4 processes of 256 images)",
        {
            **_COMMON,
            "epochs": 300,
            "lr": 2.5e-4,
            "schedule": {"name": "cosine", "warmup_epochs": 5.0, "warmup_start_lr": 1e-6, "final_lr": 1e-5},
            "ema_decay": 0.99996,
        },
    ),
}
