"""Writes a folder of files as this version makes them: `python tests/written_files/write.py VERSION`, once a version.

run                    the directory of a run that was stopped at step 6 of 8, with the result of a linear probe
backbone.safetensors   the backbone at step 8
images.cache           the image cache of two of the pictures of `write_pictures`
about.json             the machine, the cache's fingerprint and pixels, what the classifier says
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS), str(TESTS / "data/cache")]

from cache_helpers import opened, write_pictures  # noqa: E402
from run_helpers import machine, method_config  # noqa: E402

from sslcli.contracts.export import Trained  # noqa: E402
from sslcli.evaluation.classifier import load_classifier  # noqa: E402
from sslcli.evaluation.evaluate import evaluate_all  # noqa: E402
from sslcli.training.train import train  # noqa: E402

OVERRIDES = ["backbone.width=1", "training.epochs=2"]


def scores(trained: Trained) -> list[list[float]]:
    """Of a classifier, for two drawn images."""
    assert trained.classifier is not None
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = trained.backbone(images).pooled
    found: list[list[float]] = (features @ trained.classifier.weight.T + trained.classifier.bias).tolist()
    return found


def pixels(images: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(image.contiguous().numpy().tobytes() for image in images)).hexdigest()


def anonymous(path: Path) -> None:
    """Removes what only says where it was written."""
    content = json.loads(path.read_text())
    for start in content["starts"]:
        start |= {"directory": "/", "executable": "python", "command": ["ssl"]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    about: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        run = here / "run"
        train(method_config("simclr", *OVERRIDES, "training.max_steps=6"), run)
        os.chdir(here)
        evaluate_all(["run"], "linear", ["epochs=1", "lr=[0.1]"])
        about["scores"] = scores(load_classifier(run))
        for old in sorted((run / "checkpoints").iterdir())[:-1]:
            old.unlink()
        anonymous(run / "environment.json")
        (run / "eval/linear.png").unlink(missing_ok=True)
        shutil.copytree(run, folder / "run")
        train(method_config("simclr", *OVERRIDES), run, resume=True)
        shutil.copy(here / "run/backbone.safetensors", folder / "backbone.safetensors")
        write_pictures(here / "pictures")
        cache = opened(here / "pictures", "disk", limit=2, cache_size=16)
        shutil.copy(cache.path, folder / "images.cache")
        about |= {"key": cache._key.hex(), "pixels": pixels([cache.image_for(index, None) for index in range(2)])}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(__file__).parent.absolute() / sys.argv[1])
