"""The example configs hold the numbers of their authors' commands, and say in their header where those come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sslcli.config.resolve import RunConfig, load_config
from sslcli.optimizers.groups import effective_lr

ROOT = Path(__file__).parents[1] / "examples" / "configs"
DOCS = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()

#: Config: whose command, what the header must name, learning rate at its batch size, other values by their path, and
#: each kind of view's smallest crop, number and side.
COMMANDS: dict[str, tuple[str, list[str], float, dict[str, Any], list[tuple[float, int, int]]]] = {
    "imagenet/supcon": (
        "google-research/supcon: scripts/supcon_imagenet_resnet50.sh, scripts/configs.sh, hparams_flags.py",
        ["supcon_imagenet_resnet50.sh", "9.6", "78.7%", "AutoAugment"], 9.6,
        {"method.temperature": 0.1, "method.base_temperature": 1.0, "method.normalize_features": True,
         "method.projector.layers": 1, "method.projector.output_dim": 128, "method.projector.norm": "none",
         "method.projector.last_bias": False, "views.0.operations.2.name": "autoaugment",
         "views.0.operations.2.policy": "v0", "views.0.operations.2.interpolation": "nearest",
         "backbone.zero_init_residual": True, "optimizer.name": "lars_simclr", "optimizer.weight_decay": 1e-3,
         "optimizer.exclude": ["norm"], "optimizer.trust_coefficient": 0.001, "schedule.warmup_epochs": 12,
         "training.epochs": 350, "training.batch_size": 6144}, [(0.08, 2, 224)],
    ),
    "cifar10/supcon-authors": (
        "HobbitLong/SupContrast: README.md, main_supcon.py, util.py", ["SupContrast", "96.0%", "5e-4"], 0.5,
        {"method.temperature": 0.1, "method.base_temperature": 0.07, "method.projector.hidden_dim": 2048,
         "method.projector.norm": "none", "backbone.name": "resnet50", "backbone.zero_init_residual": False,
         "optimizer.name": "sgd", "optimizer.weight_decay": 1e-4, "optimizer.exclude": [], "schedule.final": 0.001,
         "schedule.warmup_epochs": 10, "schedule.warmup_start_lr": 0.01, "training.epochs": 1000,
         "training.batch_size": 1024}, [(0.2, 2, 32)],
    ),
    "imagenet/moco_v3-vit": (
        "facebookresearch/moco-v3: CONFIG.md (ViT-Small), vits.py", ["73.2%"], 1.5e-4 * 4096 / 256,
        {"method.temperature": 0.2, "method.momentum": 0.99, "backbone.name": "vit_small", "backbone.heads": 12,
         "backbone.positions": "sincos", "backbone.init": "xavier", "optimizer.name": "adamw",
         "optimizer.weight_decay": 0.1, "optimizer.exclude": [], "schedule.warmup_epochs": 40, "training.epochs": 300,
         "training.batch_size": 4096}, [(0.08, 1, 224), (0.08, 1, 224)],
    ),
    "imagenet/ijepa": (
        "facebookresearch/ijepa: configs/in1k_vith14_ep300.yaml; the paper's table 1", ["79.3%", "72.9%"], 0.001,
        {"method.target_blocks": 4, "method.target_scale": [0.15, 0.2], "method.target_ratio": [0.75, 1.5],
         "method.context_scale": [0.85, 1.0], "method.predictor.dim": 384, "method.momentum": 0.996,
         "backbone.positions": "sincos", "optimizer.weight_decay": 0.04, "optimizer.final_weight_decay": 0.4,
         "schedule.warmup_epochs": 40, "schedule.warmup_start": 0.0002 / 0.001, "schedule.final": 1e-6 / 0.001,
         "training.epochs": 600, "training.batch_size": 2048}, [(0.3, 1, 224)],
    ),
    "imagenet/mae": (
        "facebookresearch/mae: PRETRAIN.md, models_mae.py", ["83.6%", "67.8%"], 1.5e-4 * 4096 / 256,
        {"method.mask_ratio": 0.75, "method.normalize_pixels": True, "method.decoder.dim": 512,
         "method.decoder.depth": 8, "method.decoder.heads": 16, "backbone.name": "vit_base",
         "backbone.positions": "sincos", "backbone.init": "xavier", "optimizer.name": "adamw",
         "optimizer.betas": [0.9, 0.95], "optimizer.weight_decay": 0.05, "optimizer.exclude": ["norm", "bias"],
         "schedule.warmup_epochs": 40, "training.epochs": 800, "training.batch_size": 4096}, [(0.2, 1, 224)],
    ),
    "cifar10/mae": (
        "IcarusWizard/MAE: mae_pretrain.py; pprp/MAE-CIFAR: README.md", ["89.77%", "74.13%"], 1.5e-4 * 4096 / 256,
        {"method.mask_ratio": 0.75, "method.normalize_pixels": False, "method.decoder.dim": 192,
         "method.decoder.depth": 4, "method.decoder.heads": 3, "backbone.name": "vit_tiny", "backbone.patch_size": 2,
         "optimizer.betas": [0.9, 0.95], "optimizer.weight_decay": 0.05, "schedule.warmup_epochs": 200,
         "training.epochs": 2000, "training.batch_size": 4096}, [(1.0, 1, 32)],
    ),
    "cifar10/vicreg-untitled": (
        "untitled-ai/self_supervised: README.md, model_params.py, optimizer.py", ["untitled-ai"], 0.3,
        {"method.invariance": 25, "method.variance": 50, "method.covariance": 1, "optimizer.name": "lars_simclr",
         "optimizer.trust_coefficient": 0.02, "optimizer.trust_denominator": "sum_of_norms",
         "optimizer.scale_1d": True, "optimizer.exclude": [], "optimizer.exclude_names": ["*.bias", "*.bn*"],
         "optimizer.weight_decay": 1e-4, "training.batch_size": 256}, [(0.2, 2, 32)],
    ),
    "stl10/moco-contrast": (
        "untitled-ai/self_supervised: bn_experiments", ["44.1%"], 0.02,
        {"method.both_views_as_queries": True, "method.reduction": "sum", "method.loss_factor": 1.0,
         "method.temperature": 0.2, "method.queue_size": 65536, "method.projector.norm": "none",
         "method.predictor.layers": 2, "optimizer.weight_decay": 1e-4, "training.batch_size": 256}, [(0.2, 2, 96)],
    ),
    "imagenet/barlow_twins": (
        "facebookresearch/barlowtwins: main.py, README.md", ["73.5%", "73.2%"], 1.6,
        {"method.lambda_": 0.0051, "optimizer.lr_excluded": 0.0048, "optimizer.weight_decay": 1e-6,
         "schedule.warmup_epochs": 10, "schedule.final": 0.001, "training.epochs": 1000, "training.batch_size": 2048,
         "method.projector.output_dim": 8192}, [(0.08, 1, 224), (0.08, 1, 224)],
    ),
    "imagenet/vicreg": (
        "facebookresearch/vicreg: README.md, main_vicreg.py", ["73.2%"], 1.6,
        {"method.invariance": 25, "method.variance": 25, "method.covariance": 1, "optimizer.weight_decay": 1e-6,
         "schedule.warmup_epochs": 10, "schedule.final": 0.001, "training.epochs": 1000, "training.batch_size": 2048},
        [(0.08, 1, 224), (0.08, 1, 224)],
    ),
    "imagenet/simclr_v2": (
        "arXiv 2006.10029, section 3; google-research/simclr: README.md", ["6.4", "71.7%", "4.8", "64.5%"], 6.4,
        {"optimizer.weight_decay": 1e-4 / 2, "optimizer.lr_excluded": 2 * 0.1,  # as SimCLR's below
         "optimizer.scale_lr": "sqrt", "schedule.warmup_epochs": 0.05 * 800,
         "training.epochs": 800, "training.batch_size": 4096, "method.projector.layers": 3}, [(0.08, 2, 224)],
    ),
    "imagenet/simclr": (
        "arXiv 2002.05709; google-research/simclr: README.md", ["64.5%", "69.1%"], 4.8,
        {"method.temperature": 0.1, "method.projector.layers": 2, "method.projector.output_dim": 128,
         "optimizer.lr_excluded": 2 * 0.3, "optimizer.weight_decay": 1e-6 / 2,  # its loss is twice ours
         "schedule.warmup_epochs": 10, "training.batch_size": 4096}, [(0.08, 2, 224)],
    ),
    "cifar10/simclr-dcl": (
        "raminnakhli/Decoupled-Contrastive-Learning: README.md, run_simclr.sh, experiment/simclr/main.py",
        ["85.36%", "83.26%", "84.6 and 78.3%", "82.7%"], 1e-3,
        {"method.loss": "dcl", "method.temperature": 0.1, "method.sigma": 0.5, "optimizer.name": "adam",
         "optimizer.weight_decay": 1e-6, "optimizer.exclude": [], "schedule.name": "constant", "training.epochs": 100,
         "training.batch_size": 256}, [(0.08, 2, 32)],
    ),
    "imagenet/simclr-dcl": (
        "lightly-ai/lightly: benchmarks/imagenet/resnet50/dcl.py", ["68.2%"], 0.075 * 16,
        {"method.loss": "dcl", "method.temperature": 0.1, "optimizer.name": "lars", "optimizer.weight_decay": 1e-6,
         "schedule.warmup_epochs": 10, "training.epochs": 100, "training.batch_size": 256}, [(0.08, 2, 224)],
    ),
    "cifar10/lejepa": (
        "rbalestr-lab/lejepa: MINIMAL.md, README.md", ["90.7%", "128 px", "no CIFAR-10 run"], 2e-3,
        {"method.lambda_": 0.02, "method.projector.output_dim": 16, "optimizer.name": "adamw", "optimizer.exclude": [],
         "optimizer.weight_decay": 5e-4, "schedule.warmup_epochs": 1, "schedule.warmup_start": 0.01,
         "schedule.final": 0.001, "training.epochs": 800, "training.batch_size": 256}, [(0.08, 4, 32)],
    ),
    "imagenet/lejepa": (
        "rbalestr-lab/lejepa: README.md, scripts/launch_views_ablation.md", ["They give no number"], 5e-4,
        {"method.lambda_": 0.05, "method.directions": 1024, "method.projector.output_dim": 512,
         "backbone.drop_path": 0.1, "optimizer.weight_decay": 0.05, "optimizer.exclude": [], "schedule.final": 0.001,
         "training.epochs": 100, "training.batch_size": 512}, [(0.3, 2, 224), (0.05, 6, 96)],
    ),
    "imagenet/nnclr": (
        "arXiv 2104.14548, abstract and section 4", ["75.6%", "98,304", "4.8"], 4.8,
        {"method.temperature": 0.1, "method.queue_size": 98304, "method.projector.layers": 3,
         "method.predictor.hidden_dim": 4096, "optimizer.weight_decay": 1e-6, "schedule.warmup_epochs": 10,
         "training.epochs": 1000, "training.batch_size": 4096}, [(0.08, 2, 224)],
    ),
    "imagenet/byol": (
        "google-deepmind/deepmind-research: byol/configs/byol.py, utils/augmentations.py", ["74.3%", "74.4%"], 3.2,
        {"method.momentum": 0.996, "method.projector.hidden_dim": 4096, "method.projector.output_dim": 256,
         "method.predictor.hidden_dim": 4096, "optimizer.weight_decay": 1.5e-6, "optimizer.trust_coefficient": 0.001,
         "schedule.warmup_epochs": 10, "training.epochs": 1000, "training.batch_size": 4096},
        [(0.08, 1, 224), (0.08, 1, 224)],
    ),
    "imagenet/dino-resnet50": (
        "facebookresearch/dino: README.md (ResNet-50 and other convnets), main_dino.py",
        ["README", "no number", "67.5%", "75.3%"], 0.06,
        {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
         "optimizer.final_weight_decay": None, "optimizer.exclude": ["norm", "bias"], "schedule.warmup_epochs": 10,
         "schedule.final_lr": 1e-6, "training.clip": {"norm": 3.0, "mode": "per_parameter"}, "training.epochs": 100,
         "training.batch_size": 512, "method.momentum": 0.996, "method.teacher_temperature": 0.04,
         "method.teacher_temperature_warmup_epochs": 0, "method.freeze_last_layer_epochs": 1,
         "method.head.prototypes": 65536, "method.head.norm_last_layer": True, "backbone.zero_init_residual": False},
        [(0.14, 1, 224), (0.14, 1, 224), (0.05, 8, 96)],
    ),
    "imagenet/dino": (
        "facebookresearch/dino: README.md (vanilla), main_dino.py", ["69.3%", "74.0%", "77.0%"], 0.001,
        {"optimizer.weight_decay": 0.04, "optimizer.final_weight_decay": 0.4, "schedule.final_lr": 1e-6,
         "training.epochs": 100, "training.batch_size": 512}, [(0.4, 1, 224), (0.4, 1, 224), (0.05, 8, 96)],
    ),
    "imagenet/densecl": (
        "WXinlong/DenseCL: README.md, configs/selfsup/densecl/densecl_imagenet_200ep.py", ["58.7", "69.4", "0.3"], 0.03,
        {"method.temperature": 0.2, "method.queue_size": 65536, "method.momentum": 0.999, "method.dense_weight": 0.5,
         "method.num_grid": None, "method.projector.hidden_dim": 2048, "method.projector.output_dim": 128,
         "optimizer.exclude": [], "optimizer.weight_decay": 1e-4, "optimizer.momentum": 0.9, "schedule.name": "cosine",
         "training.epochs": 200, "training.batch_size": 256}, [(0.2, 2, 224)],
    ),
    "imagenet/distillation": (
        "lightly-ai/lightly-train: _methods/distillationv3", ["lightly-train", "no number", "mixup"], 5e-4,
        {"method.queue_size": 8192, "method.temperature": 0.07, "method.teacher_temperature": 0.07,
         "optimizer.name": "adamw", "optimizer.weight_decay": 1e-6, "schedule.warmup_epochs": 10,
         "training.clip": {"norm": 1.0, "mode": "global"}, "training.batch_size": 1536}, [(0.14, 1, 224)],
    ),
    "imagenet/moco_v1": (
        "facebookresearch/moco: README.md, main_moco.py", ["60.6%", "60.8"], 0.03,
        {"method.temperature": 0.07, "method.queue_size": 65536, "method.momentum": 0.999, "optimizer.exclude": [],
         "optimizer.weight_decay": 1e-4, "schedule.milestones": [0.6, 0.8], "training.epochs": 200,
         "training.batch_size": 256}, [(0.2, 2, 224)],
    ),
    "imagenet/moco_v2": (
        "facebookresearch/moco: README.md, main_moco.py", ["67.5%", "71.1%"], 0.03,
        {"method.temperature": 0.2, "method.queue_size": 65536, "optimizer.exclude": [], "schedule.name": "cosine",
         "training.epochs": 200, "training.batch_size": 256}, [(0.2, 2, 224)],
    ),
    "cifar10/moco_v1": (
        "facebookresearch/moco: colab/moco_cifar10_demo.ipynb",
        ["82.6%", "k 200", "temperature .1 on the 128 outputs", "8 groups", "asymmetric", "200 epochs"], 0.06,
        {"method.temperature": 0.1, "method.queue_size": 4096, "method.momentum": 0.99, "method.symmetric": False,
         "method.projector.output_dim": 128, "optimizer.weight_decay": 5e-4, "optimizer.exclude": [],
         "schedule.name": "cosine", "training.epochs": 200, "training.batch_size": 512}, [(0.08, 2, 32)],
    ),
    "imagenet/moco_v3": (
        "facebookresearch/moco-v3: CONFIG.md", ["72.8%", "68.9%", "74.6%"], 4.8,
        {"method.temperature": 1.0, "method.momentum": 0.99, "optimizer.weight_decay": 1e-6, "training.epochs": 300,
         "schedule.warmup_epochs": 10, "training.batch_size": 4096}, [(0.2, 1, 224), (0.2, 1, 224)],
    ),
    "imagenet/swav": (
        "facebookresearch/swav: scripts/swav_800ep_pretrain.sh", ["75.3%", "74.6", "73.9", "72.1"], 4.8,
        {"method.queue_size": 0, "method.frozen_steps": 313, "method.prototypes": 3000, "schedule.final_lr": 0.0048,
         "schedule.warmup_epochs": 10, "schedule.warmup_start_lr": 0.3, "optimizer.weight_decay": 1e-6,
         "training.epochs": 800, "training.batch_size": 4096}, [(0.14, 2, 224), (0.05, 6, 96)],
    ),
    "imagenet/swav-256": (
        "facebookresearch/swav: scripts/swav_400ep_bs256_pretrain.sh", ["74.3%", "72.7"], 0.6,
        {"method.queue_size": 3840, "method.queue_start_epoch": 15, "method.frozen_steps": 5005,
         "schedule.final_lr": 0.0006, "schedule.warmup_epochs": 0, "training.epochs": 400, "training.batch_size": 256},
        [(0.14, 2, 224), (0.05, 6, 96)],
    ),
    "imagenet/simsiam": (
        "facebookresearch/simsiam: README.md, main_simsiam.py", ["68.1%"], 0.1,
        {"optimizer.weight_decay": 1e-4, "optimizer.exclude": [], "schedule.warmup_epochs": 0, "training.epochs": 100,
         "training.batch_size": 512, "method.predictor.hidden_dim": 512}, [(0.2, 2, 224)],
    ),
}  # fmt: skip


@cache
def config(name: str) -> RunConfig:
    return load_config(ROOT / f"{name}.yaml", [])


def at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[int(key) if isinstance(values, list) else key]
    return values


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_config_has_its_authors_values(name: str) -> None:
    _, _, lr, values, crops = COMMANDS[name]
    found = config(name)
    plain = found.plain()
    assert effective_lr(found.optimizer.options, found.training.batch_size) == pytest.approx(lr)
    assert {path: at(plain, path) for path in values} == values
    smallest = [(view["operations"][0]["scale"][0], view["count"], view["size"]) for view in plain["views"]]
    assert smallest == crops


@pytest.mark.parametrize("name", COMMANDS)
def test_its_header_names_the_numbers_of_its_source(name: str) -> None:
    text = (ROOT / f"{name}.yaml").read_text().replace("\n# ", " ")
    header = next(line for line in text.splitlines() if line.startswith("# "))
    assert [part for part in COMMANDS[name][1] if part not in header] == []
    assert "Not run to completion by us." in header


#: solo-learn, scripts/pretrain/cifar/METHOD.yaml: optimizer (`lars` there is LARC here), lr at 256, weight decay,
#: projector's hidden and output dimension; and acc@1 on CIFAR-10 after 1000 epochs, by its README.
SOLO_LEARN = {
    "barlow_twins": ("larc", 0.3, 1e-4, 2048, 2048, "92.10"), "byol": ("larc", 1.0, 1e-5, 4096, 256, "92.58"),
    "dino": ("larc", 0.3, 1e-6, 2048, 256, "89.52"), "moco_v2": ("sgd", 0.3, 1e-4, 2048, 256, "92.94"),
    "moco_v3": ("larc", 0.3, 1e-6, 4096, 256, "93.10"), "simclr-1000": ("larc", 0.4, 1e-4, 2048, 256, "90.74"),
    "simsiam-1000": ("sgd", 0.5, 1e-5, 2048, 2048, "90.51"), "supcon": ("sgd", 0.4, 1e-5, 2048, 256, "93.82"),
    "nnclr": ("larc", 0.4, 1e-5, 2048, 256, "91.88"),
    "swav": ("larc", 0.6, 1e-6, 2048, 128, "89.17"), "vicreg": ("larc", 0.3, 1e-4, 2048, 2048, "92.07"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLO_LEARN)
def test_cifar_configs_have_solo_learns_values(name: str) -> None:
    found = config(f"cifar10/{name}")
    plain, (optimizer, lr, decay, hidden, out, number) = found.plain(), SOLO_LEARN[name]
    head = plain["method"].get("projector") or plain["method"]["head"]
    dims = head["hidden_dim"], head.get("output_dim") or head["bottleneck_dim"]
    assert (plain["optimizer"]["name"], plain["optimizer"]["weight_decay"], dims) == (optimizer, decay, (hidden, out))
    assert head.get("last_bias", True)  # where it matters; a batch norm in the loss or centering cancels it elsewhere
    assert effective_lr(found.optimizer.options, found.training.batch_size) == pytest.approx(lr)
    assert (found.training.epochs, found.training.batch_size) == (1000, 256)
    assert plain["schedule"]["warmup_epochs"] == 10
    if optimizer == "larc":
        assert (plain["optimizer"]["trust_coefficient"], plain["optimizer"]["clip"]) == (0.02, True)
    assert f"{number}%" in (ROOT / f"cifar10/{name}.yaml").read_text()
    assert number in DOCS
