"""A config of three lines (method, backbone, data) gets its authors' settings, as `--dry-run` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import done

from sslcli.config.document import dump_yaml
from sslcli.config.resolve import load_config

#: facebookresearch/moco-v3: CONFIG.md (ViT-Small), vits.py; facebookresearch/dino: main_dino.py (ViT), README.md
#: (ResNet-50); facebookresearch/swav: scripts/swav_200ep_bs256_pretrain.sh and src/resnet50.py.
ADAMW = {"name": "adamw", "lr": 1.5e-4, "weight_decay": 0.1, "final_weight_decay": None, "exclude": [],
         "scale_lr": "batch/256", "betas": [0.9, 0.999]}  # fmt: skip
VIT_DINO = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.04, "final_weight_decay": 0.4, "exclude": ["norm", "bias"],
            "scale_lr": "batch/256"}  # fmt: skip
RESNET_DINO = {"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "final_weight_decay": None,
               "exclude": ["norm", "bias"], "scale_lr": "batch/256"}  # fmt: skip
DINO_SCHEDULE = {"name": "cosine", "warmup_epochs": 10, "warmup": "linspace", "final_lr": 1e-6}
CLIP = {"norm": 3.0, "mode": "per_parameter"}
SWAV = {"name": "larc", "lr": 0.6, "weight_decay": 1e-6, "clip": False, "exclude": [], "trust_coefficient": 0.001,
        "scale_lr": "batch/256"}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Returns the resolved config for a method, a backbone and a size of the images."""

    def read(method: str, backbone: str, size: int) -> dict[str, Any]:
        config = tmp_path / "c.yaml"
        config.write_text(f"method: {method}\nbackbone: {backbone}\ndata: {{name: shapes, count: 4, size: {size}}}\n")
        found: dict[str, Any] = yaml.safe_load(dump_yaml(load_config(config, ["training.batch_size=4"]).plain()))
        return found

    return read


@pytest.mark.usefixtures("no_estimate")
def test_they_are_what_a_dry_run_shows(settings: Any, tmp_path: Path) -> None:
    for method in ("dino", "supcon"):
        found = settings(method, "resnet18", 64)
        printed = yaml.safe_load(done("train", tmp_path / "c.yaml", "--dry-run", "training.batch_size=4")[0])
        for section in ("method", "backbone", "views", "optimizer", "schedule"):
            assert printed[section] == found[section]
        assert printed["training"]["clip"] == found["training"]["clip"]


def subset(expected: dict[str, Any], found: dict[str, Any]) -> bool:
    return {key: found.get(key) for key in expected} == expected


def crops(config: dict[str, Any]) -> list[tuple[int, int, list[float]]]:
    """Number, side, and scale of the crops of each kind of view."""
    return [(view["count"], view["size"], view["operations"][0]["scale"]) for view in config["views"]]


@pytest.mark.parametrize(
    ("backbone", "size"), [("{name: vit_small, patch_size: 4}", 32), ("vit_small", 224)], ids=["32", "224"]
)
def test_moco_v3_on_a_vit(settings: Any, backbone: str, size: int) -> None:
    config = settings("moco_v3", backbone, size)
    assert subset({"init": "xavier", "positions": "sincos", "heads": 12}, config["backbone"])
    assert subset(ADAMW, config["optimizer"])
    assert subset({"name": "cosine", "warmup_epochs": 40, "final": 0.0}, config["schedule"])
    assert crops(config) == [(1, size, [0.08, 1.0])] * 2
    if size == 224:
        assert {view["operations"][0]["interpolation"] for view in config["views"]} == {"bilinear"}


@pytest.mark.parametrize(
    ("backbone", "size", "local"),
    [("{name: vit_small, patch_size: 4}", 32, None), ("vit_small", 96, 40), ("vit_small", 224, 96),
     ("vit_small", 256, 112), ("{name: vit_small, patch_size: 8}", 96, 40)],
)  # fmt: skip
def test_dino_on_a_vit(settings: Any, backbone: str, size: int, local: int | None) -> None:
    config = settings("dino", backbone, size)
    assert subset({"init": "normal", "positions": "learned", "drop_path": 0.0}, config["backbone"])
    assert subset(VIT_DINO, config["optimizer"])
    assert subset(DINO_SCHEDULE, config["schedule"])
    assert (config["training"]["clip"], config["method"]["drop_path"]) == (CLIP, 0.1)
    multicrop = [(1, size, [0.4, 1.0]), (1, size, [0.4, 1.0]), (8, local, [0.05, 0.4])]
    assert crops(config) == (multicrop if local else [(1, 32, [0.08, 1.0])] * 2)


def test_dino_on_a_resnet(settings: Any) -> None:
    config = settings("dino", "resnet18", 224)
    assert config["backbone"]["zero_init_residual"] is False
    assert subset(RESNET_DINO, config["optimizer"])
    assert subset(DINO_SCHEDULE, config["schedule"])
    assert config["training"]["clip"] == CLIP
    assert crops(config) == [(1, 224, [0.14, 1.0]), (1, 224, [0.14, 1.0]), (8, 96, [0.05, 0.14])]


def test_swav_on_a_resnet(settings: Any) -> None:
    config = settings("swav", "resnet18", 224)
    assert config["backbone"]["zero_init_residual"] is False
    assert subset(SWAV, config["optimizer"])
    assert subset({"name": "cosine", "warmup_epochs": 0, "final": 0.001}, config["schedule"])
    assert crops(config) == [(2, 224, [0.14, 1.0]), (6, 96, [0.05, 0.14])]


@pytest.mark.parametrize("method", ["moco_v1", "moco_v2", "eqco", "moco", "supcon"])
def test_methods_on_torchvisions_resnet_do_not_zero_the_residual(settings: Any, method: str) -> None:
    assert settings(method, "resnet18", 32)["backbone"]["zero_init_residual"] is False


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol", "moco_v3", "barlow_twins"])
def test_other_methods_zero_it(settings: Any, method: str) -> None:
    assert settings(method, "resnet18", 32)["backbone"]["zero_init_residual"] is True
