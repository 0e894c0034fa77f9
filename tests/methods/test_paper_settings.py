"""Defaults, recipes and heads of the methods are those of their papers."""

from __future__ import annotations

from typing import Any

import pytest
from method_helpers import layers, make
from small_options import needs_vit
from torch import nn

from sslcli.plugins import load
from sslcli.runs.network_size import without_memory

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "exclude": [], "scale_lr": "batch/256"}
LARS = {"name": "lars", "scale_lr": "batch/256"}
CROP = {"crop_scale": [0.2, 1.0]}
WIDE = {"projector.layers": 3, "projector.hidden_dim": 8192, "projector.output_dim": 8192}
MINIMAL = {"preset": "lejepa", "local_count": 0, "global_count": 4, "global_scale": [0.08, 1.0]}

#: Options, optimizer, schedule, and the views of large and small images.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any, Any]] = {
    "simclr": (
        {"temperature": 0.5, "projector.layers": 2, "projector.hidden_dim": None, "projector.output_dim": 128},
        {"name": "lars_simclr", "lr": 0.3, "weight_decay": 1e-6, "scale_lr": "batch/256"},
        {"name": "cosine", "warmup_epochs": 10}, {"preset": "simclr"}, {"preset": "simclr"},
    ),
    "simclr_v2": (
        {"temperature": 0.1, "projector.layers": 3, "keep_projector_layers": 0},
        {"name": "lars_simclr", "lr": 0.075, "weight_decay": 1e-4, "scale_lr": "sqrt"},
        {"name": "cosine", "warmup_epochs": 10}, {"preset": "simclr"}, {"preset": "simclr"},
    ),
    "supcon": (
        {"temperature": 0.1, "base_temperature": 0.07, "contrast": "all"}, {**SGD, "lr": 0.05},
        {"name": "cosine", "warmup_epochs": 10}, {"preset": "supcon"}, {"preset": "supcon"},
    ),
    "simsiam": (
        {"projector.layers": 3, "projector.hidden_dim": 2048, "projector.output_dim": 2048,
         "predictor.hidden_dim": 512},
        {**SGD, "lr": 0.05}, {"name": "cosine"}, {"preset": "moco_v2"}, {"preset": "moco_v2", "blur": 0.0},
    ),
    "byol": (
        {"projector.layers": 2, "projector.hidden_dim": 4096, "projector.output_dim": 256, "predictor.layers": 2,
         "predictor.hidden_dim": 4096, "momentum": 0.996, "final_momentum": 1.0},
        {**LARS, "lr": 0.2, "weight_decay": 1.5e-6},
        {"name": "cosine", "warmup_epochs": 10}, {"preset": "byol", "blur": {"kernel": 0.1}}, {"preset": "cifar_asym"},
    ),
    "moco_v1": (
        {"temperature": 0.07, "queue_size": 65536, "momentum": 0.999, "final_momentum": None, "symmetric": False,
         "projector.output_dim": 128},
        {**SGD, "lr": 0.03}, {"name": "step", "milestones": [0.6, 0.8], "factor": 0.1},
        {"preset": "moco_v1"}, {"preset": "moco_v1"},
    ),
    "moco_v2": (
        {"temperature": 0.2, "queue_size": 65536, "momentum": 0.999, "final_momentum": None, "symmetric": False,
         "projector.output_dim": 128},
        {**SGD, "lr": 0.03}, {"name": "cosine"}, {"preset": "moco_v2"}, {"preset": "moco_v2"},
    ),
    "eqco": (
        {"temperature": 0.2, "queue_size": 256, "alpha": 65536, "momentum": 0.999},
        {**SGD, "lr": 0.03}, {"name": "cosine"}, {"preset": "moco_v2"}, {"preset": "moco_v2"},
    ),
    "moco": (
        {"temperature": 0.2, "queue_size": 65536, "projector.output_dim": 128, "momentum": 0.996,
         "final_momentum": None, "both_views_as_queries": False, "predictor.layers": 0},
        {**SGD, "lr": 0.5}, {"name": "cosine"}, {"preset": "moco_v2"}, {"preset": "moco_v2"},
    ),
    "moco_v3": (
        {"projector.hidden_dim": 4096, "projector.output_dim": 256, "predictor.hidden_dim": 4096, "momentum": 0.99,
         "final_momentum": 1.0},
        {**LARS, "lr": 0.3, "weight_decay": 1e-6}, {"name": "cosine", "warmup_epochs": 10},
        {"preset": "byol", "crop_scale": [0.2, 1.0], "interpolation": "bilinear"}, {"preset": "cifar_asym"},
    ),
    "nnclr": (
        {"projector.layers": 3, "projector.hidden_dim": 2048, "projector.output_dim": 256,
         "predictor.hidden_dim": 4096, "temperature": 0.1, "queue_size": 98304},
        {**LARS, "lr": 0.3, "weight_decay": 1e-6}, {"name": "cosine", "warmup_epochs": 10},
        {"preset": "simclr"}, {"preset": "simclr"},
    ),
    "swav": (
        {"projector.layers": 2, "projector.hidden_dim": 2048, "projector.output_dim": 128, "prototypes": 3000,
         "temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "queue_size": 3840, "queue_start_epoch": 15,
         "frozen_epochs": 1},
        {"name": "larc", "lr": 0.6, "weight_decay": 1e-6, "momentum": 0.9, "trust_coefficient": 0.001, "clip": False,
         "exclude": [], "scale_lr": "batch/256"},
        {"name": "cosine", "final": 0.001}, {"preset": "swav", "local_multiple": 1},
        {"preset": "simclr", "strength": 1.0, "blur": 0.5},
    ),
    "dino": (
        {"head.layers": 3, "head.hidden_dim": 2048, "head.bottleneck_dim": 256, "head.prototypes": 65536,
         "head.norm": "none", "head.norm_last_layer": True, "student_temperature": 0.1, "teacher_temperature": 0.04,
         "momentum": 0.996, "final_momentum": 1.0, "center_momentum": 0.9, "freeze_last_layer_epochs": 1},
        {"name": "adamw", "lr": 5e-4, "weight_decay": 0.04, "final_weight_decay": 0.4, "exclude": ["norm", "bias"],
         "scale_lr": "batch/256"},
        {"name": "cosine", "warmup_epochs": 10, "warmup": "linspace", "final_lr": 1e-6},
        {"preset": "dino", "local_multiple": 16}, {"preset": "cifar_asym"},
    ),
    "ijepa": (
        {"target_blocks": 4, "target_scale": (0.15, 0.2), "target_ratio": (0.75, 1.5), "context_scale": (0.85, 1.0),
         "predictor.depth": 6, "momentum": 0.996, "final_momentum": 1.0},
        {"name": "adamw", "lr": 0.001 * 256 / 2048, "weight_decay": 0.04, "final_weight_decay": 0.4,
         "exclude": ["norm", "bias"], "scale_lr": "batch/256"},
        {"name": "cosine", "warmup_epochs": 40, "warmup_start": 0.2, "final": 0.001},
        *[[{"crop_scale": [0.3, 1.0]}]] * 2,
    ),
    "mae": (
        {"mask_ratio": 0.75, "normalize_pixels": True, "decoder.depth": 8},
        {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.05, "betas": [0.9, 0.95], "exclude": ["norm", "bias"],
         "scale_lr": "batch/256"},
        {"name": "cosine", "warmup_epochs": 40}, *[[{**CROP, "interpolation": "bicubic", "flip": 0.5}]] * 2,
    ),
    "barlow_twins": (
        {**WIDE, "lambda_": 0.0051, "scale": 1.0}, {**LARS, "lr": 0.2, "lr_excluded": 0.0048, "weight_decay": 1e-6},
        {"name": "cosine", "warmup_epochs": 10, "final": 0.001}, {"preset": "byol"}, {"preset": "cifar_asym"},
    ),
    "lejepa": (
        {"lambda_": 0.05, "directions": 1024, "integration_limit": 5.0, "integration_points": 17,
         "projector.layers": 3, "projector.hidden_dim": 2048},
        {"name": "adamw", "lr": 5e-4, "weight_decay": 5e-4, "exclude": []},
        {"name": "cosine", "warmup_epochs": 1, "warmup_start": 0.01, "final": 0.001}, MINIMAL, {**MINIMAL, "blur": 0.0},
    ),
    "vicreg": (
        {**WIDE, "invariance": 25, "variance": 25, "covariance": 1, "epsilon": 1e-4},
        {**LARS, "lr": 0.2, "weight_decay": 1e-6},
        {"name": "cosine", "warmup_epochs": 10, "final": 0.001}, {"preset": "byol"}, {"preset": "cifar_asym"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_and_recipes_are_the_papers(name: str) -> None:
    cls = load("methods", name)
    values, optimizer, schedule, large, small = SETTINGS[name]
    options = cls.Options.parse({})
    for path, value in values.items():
        found: Any = options
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path
    backbone = load("backbones", "vit_small" if name == "dino" or needs_vit(name) else "resnet18")
    spec = backbone.describe(backbone.Options.parse({}), 3, 224)
    defaults = cls.defaults(options, spec)
    found = dict(defaults["optimizer"])
    assert found.pop("name") == optimizer["name"]
    kind = load("optimizers", optimizer["name"]).Options
    assert kind.parse(found) == kind.parse({key: value for key, value in optimizer.items() if key != "name"})
    assert defaults["schedule"] == schedule
    assert [cls.recipe(options, size, spec) for size in (224, 96, 64, 32)] == [large, large, small, small]


BLOCK, PLAIN = "linear bn relu", "linear+bias relu"
NO_NORM = {"norm": "none", "last_norm": "none"}
#: Method, options of its heads, layers of the projector, and of the predictor.
HEADS: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("simclr", {}, f"{BLOCK} linear bn-β", None),
    ("simclr", {"projector": {"layers": 3}}, f"{BLOCK} {BLOCK} linear bn-β", None),
    ("simclr", {"projector": {"norm": "none"}}, f"{PLAIN} linear", None),
    ("simclr", {"projector": {"norm": "none", "last_bias": True}}, f"{PLAIN} linear+bias", None),
    ("simclr", {"projector": {"last_bias": True}}, f"{BLOCK} linear bn-β", None),
    ("simclr_v2", {}, f"{BLOCK} {BLOCK} linear bn-β", None),
    ("supcon", {}, f"{PLAIN} linear+bias", None),  # SupContrast's networks/resnet_big.py
    ("supcon", {"projector": {"norm": "batch", "last_bias": False}}, f"{BLOCK} linear bn-β", None),
    ("simsiam", {}, f"{BLOCK} {BLOCK} linear bn-γβ", f"{BLOCK} linear+bias"),
    ("simsiam", {"projector": {"layers": 2}}, f"{BLOCK} linear bn-γβ", f"{BLOCK} linear+bias"),
    ("simsiam", {"projector": NO_NORM, "predictor": NO_NORM}, f"{PLAIN} {PLAIN} linear+bias", f"{PLAIN} linear+bias"),
    (
        "simsiam", {"projector": {"last_norm": "full"}, "predictor": {"last_norm": "full"}},
        f"{BLOCK} {BLOCK} linear bn", f"{BLOCK} linear bn",
    ),
    ("byol", {}, f"{BLOCK} linear", f"{BLOCK} linear"),  # deepmind's byol/utils/networks.py
    (
        "byol", {"projector": {"norm": "none", "last_bias": True}, "predictor": {"norm": "none", "layers": 1}},
        f"{PLAIN} linear+bias", "linear",
    ),
    ("moco_v1", {}, "linear+bias", None),
    ("moco_v1", {"projector": {"last_bias": False}}, "linear", None),
    ("moco_v2", {}, f"{PLAIN} linear+bias", None),
    ("moco_v2", {"projector": {"last_bias": False}}, f"{PLAIN} linear", None),
    ("eqco", {}, f"{PLAIN} linear+bias", None),
    ("moco_v3", {}, f"{BLOCK} linear bn-γβ", f"{BLOCK} linear"),
    (
        "moco_v3", {"projector": {"layers": 1}, "predictor": {"last_norm": True}},
        "linear bn-γβ", f"{BLOCK} linear bn-γβ",
    ),
    ("nnclr", {}, f"{BLOCK} {BLOCK} linear bn", f"{BLOCK} linear+bias"),
    ("swav", {}, f"{BLOCK} linear+bias", None),
    ("barlow_twins", {}, f"{BLOCK} {BLOCK} linear", None),
    ("barlow_twins", {"projector": {"norm": "none"}}, f"{PLAIN} {PLAIN} linear", None),
    ("lejepa", {}, f"{BLOCK} {BLOCK} linear+bias", None),
    ("vicreg", {}, f"{BLOCK} {BLOCK} linear", None),
    ("vicreg", {"projector": {"norm": "none"}}, f"{PLAIN} {PLAIN} linear", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "projector", "predictor"), HEADS)
def test_heads_are_the_papers_or_as_the_options_say(
    name: str, options: dict[str, Any], projector: str, predictor: str | None
) -> None:
    method = without_memory(lambda: make(load("methods", name), **options))
    assert method is not None
    assert layers(method.projector) == projector
    assert (layers(method.predictor) if predictor else getattr(method, "predictor", None)) == predictor


def test_hidden_layers_are_as_wide_as_the_features_where_the_options_say_null() -> None:
    for name in ("simclr", "simclr_v2", "supcon", "moco_v2", "moco"):
        first = next(part for part in make(load("methods", name)).projector if isinstance(part, nn.Linear))
        assert tuple(first.weight.shape) == (6, 6), name
