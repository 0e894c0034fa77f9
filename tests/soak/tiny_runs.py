"""The runs that are killed: every method, small, on images in memory or in files, with one or two processes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: 8 steps, four in an epoch, with a checkpoint after every second one; monitors keep state of their own. Nothing but
#: `stall_timeout` ends a process whose partner is killed before it has joined: there is no launcher.
_CONFIG: dict[str, Any] = {
    "backbone": {"name": "resnet18", "stem": "small", "width": 4},
    "schedule": {"name": "cosine", "warmup_epochs": 1},
    "training": {
        "epochs": 2,
        "batch_size": 8,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "compile": "none",
        "stall_timeout": 45,
    },
    "checkpoints": {"every_steps": 2},
    "callbacks": {"knn": {"every_epochs": 1, "k": 4}, "online_probe": {}, "tensorboard": {}, "progress": None},
}
_IN_MEMORY = {"name": "shapes", "count": 32, "size": 16}
IMAGES = "images"


@dataclass(frozen=True)
class Case:
    """A run: its method, the number of processes, and whether its images are files (read by a worker, and cached)."""

    method: str
    processes: int
    files: bool

    def write(self, folder: Path) -> Path:
        """Writes the config of the case into a folder whose parent has the images; returns the file."""
        from small_options import small

        from sslcli.plugins import load

        config = copy.deepcopy(_CONFIG)
        config["method"] = {"name": self.method, **small(load("methods", self.method).Options)}
        if "ViT" in load("methods", self.method).needs:
            config["backbone"] = {"name": "vit_tiny", "patch_size": 4, "depth": 1}
        if self.files:
            config["data"] = {"name": "folder", "root": str(folder.parent / IMAGES), "cache": "disk"}
            config["data"] |= {"cache_size": 16, "cache_dir": str(folder / "cache")}
            config["views"] = {"size": 16}
            config["training"]["workers"] = 1
        else:
            config["data"] = _IN_MEMORY
        folder.mkdir(parents=True)
        (path := folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return path


def methods() -> list[str]:
    from sslcli.plugins import find

    return sorted(plugin.name for plugin in find("methods") if plugin.package == "sslcli")


def write_images(root: Path) -> None:
    """16 images of each of two classes to train on, and four others to test."""
    from PIL import Image

    for part, count, shift in (("train", 16, 0), ("val", 4, 6)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                gradient = bytes((x * (label + 1) * 7 + number * 13 + shift) % 256 for x in range(20 * 22 * 3))
                Image.frombytes("RGB", (20, 22), gradient).save(root / part / name / f"{number}.png")
