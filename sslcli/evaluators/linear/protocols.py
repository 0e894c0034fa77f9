"""The linear evaluations of the papers, as their authors' code runs them on ImageNet: `protocol=NAME`.

All of them train on random crops and flips, with the frozen network in `eval()`, and decay the bias like the weights.
`tests/evaluators/test_protocols.py` holds every value.
"""

from __future__ import annotations

from typing import Any

from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.evaluation import Published

#: DINO evaluates a ViT of at least so many features like ViT-B.
_BASE = 768
#: Of the ImageNet training images, those on which BYOL's learning rate is chosen.
_BYOL_HELD_OUT = 10_000 / 1_281_167
_BICUBIC = {"views": {"preset": "probe_train", "interpolation": "bicubic"}, "interpolation": "bicubic"}


def _published(source: str, *, optimizer: dict[str, Any], **options: Any) -> Published:
    """Returns settings of which most papers share these; cosine as torch's, stepped once an epoch."""
    common: dict[str, Any] = {
        "protocol": "augmented",
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0, "exclude": [], **optimizer},
        "schedule": {"name": "cosine", "per_epoch": True},
        "standardize": False,
        "init": "normal",
        "views": {"preset": "probe_train", "interpolation": "bilinear"},
        "feature": "pooled",
        "interpolation": "bilinear",
    }
    return Published(source, common | options)


def _dino(network: str, **options: Any) -> Published:
    source = f"facebookresearch/dino, eval_linear.py ({network})"
    return _published(source, epochs=100, optimizer={"scale_lr": "batch/256"}, interpolation="bicubic", **options)


def _moco_v3(source: str, lr: float) -> Published:
    source = f"facebookresearch/moco-v3, {source}"
    return _published(source, lr=lr, batch_size=1024, epochs=90, optimizer={"scale_lr": "batch/256"})


_MOCO = _published(
    "facebookresearch/moco, main_lincls.py",
    lr=30.0, batch_size=256, epochs=100, optimizer={},
    schedule={"name": "step", "milestones": [0.6, 0.8], "factor": 0.1},
)  # fmt: skip

PROTOCOLS = {
    "barlow_twins": _published(
        "facebookresearch/barlowtwins, evaluate.py and README",
        lr=0.3, batch_size=256, epochs=100, optimizer={"weight_decay": 1e-6},
    ),
    # The five rates, each for a batch of 256, and the batch size are the paper's; the README says how one is chosen.
    "byol": _published(
        "google-deepmind/deepmind-research, byol/configs/eval.py and README; paper: arXiv:2006.07733",
        lr=[0.4, 0.3, 0.2, 0.1, 0.05], batch_size=1024, epochs=80,
        optimizer={"nesterov": True, "scale_lr": "batch/256"}, schedule={"name": "cosine"}, init="lecun",
        held_out=_BYOL_HELD_OUT, refit=False, **_BICUBIC,
    ),
    "dino": _dino("ViT-S: n_last_blocks 4", lr=0.001, batch_size=1024, feature="cls_last4"),
    "dino_vitb": _dino(
        "ViT-B: n_last_blocks 1, avgpool_patchtokens", lr=0.001, batch_size=1024, feature="cls_mean"
    ),
    # The rate in the published log of the ResNet-50 that reaches 75.3%; the code's default is for the ViTs.
    "dino_resnet": _dino("ResNet-50, its log", lr=0.3, batch_size=256),
    "moco_v1": _MOCO,
    "moco_v2": _MOCO,
    "moco_v3": _moco_v3("main_lincls.py (ResNet-50)", 0.1),
    "moco_v3_vit": _moco_v3("main_lincls.py and CONFIG.md (ViT)", 3.0),
    "simclr": _published(
        "google-research/simclr, run.py and README",
        lr=0.1, batch_size=4096, epochs=90,
        optimizer={"weight_decay": 1e-6, "nesterov": True, "scale_lr": "batch/256"}, schedule={"name": "cosine"},
        init="zero", **_BICUBIC,
    ),
    "simsiam": _published(
        "facebookresearch/simsiam, main_lincls.py --lars",
        lr=0.1, batch_size=4096, epochs=90,
        optimizer={"name": "larc", "clip": False, "trust_coefficient": 0.001, "scale_lr": "batch/256"},
    ),
    "swav": _published(
        "facebookresearch/swav, eval_linear.py",
        lr=0.3, batch_size=256, epochs=100, optimizer={"weight_decay": 1e-6},
    ),
    "vicreg": _published(
        "facebookresearch/vicreg, evaluate.py and README",
        lr=0.02, batch_size=256, epochs=100, optimizer={"weight_decay": 1e-6},
    ),
}  # fmt: skip


def protocol_for(name: str, spec: BackboneSpec) -> str:
    """Returns `dino_vitb`, `dino_resnet` or `moco_v3_vit` for `dino` and `moco_v3` on such a network."""
    is_vit = spec.patch_size is not None
    if name == "dino":
        return "dino_resnet" if not is_vit else "dino_vitb" if spec.feature_dim >= _BASE else "dino"
    return "moco_v3_vit" if name == "moco_v3" and is_vit else name
