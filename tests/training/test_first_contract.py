"""The second contract changes no run of the first: losses, weights, checkpoints and exported files are what they were.

Where a default has changed since then, a new run has the same numbers with the options in `Options.legacy`, and a
checkpoint of then has them without: it is resumed as it was.

`first_contract/` holds the ends of short runs by the last version of the first contract (commit a3378c8), one a
method, and features of a ViT; `python tests/training/test_first_contract.py FOLDER` wrote them. On the machine and
torch version that they are from they must be equal to the bit, on others close, since kernels differ.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import machine, method_config, newest
from safetensors.torch import load_file, save_file
from small_options import method_cases
from torch import Tensor

from sslcli.backbones.vit import ViTTiny
from sslcli.contracts.options import Options
from sslcli.runs.checkpoint import checkpoint_path, read_checkpoint
from sslcli.runs.files import read
from sslcli.runs.metrics import read_metrics
from sslcli.training.train import train

FOLDER = Path(__file__).parent / "first_contract"
#: The methods of then, beside `python test_first_contract.py`, which writes those of now.
NAMES = [name for name in method_cases() if (FOLDER / f"{name}.safetensors").exists()]
STEPS = 3
OVERRIDES = (
    f"training.max_steps={STEPS}", "training.log_every=1", "schedule.warmup_epochs=1", "backbone.width=1",
    "checkpoints.every_epochs=1",
)  # fmt: skip
#: What has become another default for a ResNet since then.
AS_THEN = {
    "dino": ("optimizer={name: adamw, lr: 5e-4, weight_decay: 0.04, final_weight_decay: 0.4, exclude: [norm, bias], "
             "scale_lr: batch/256}",),
}  # fmt: skip


def run(name: str, folder: Path, *overrides: str, resume: bool = False) -> Path:
    train(
        method_config(name, *OVERRIDES, *AS_THEN.get(name, ()), *overrides, own_optimizer=True), folder, resume=resume
    )
    return folder


def legacy(options: Options, prefix: str) -> list[str]:
    """Overrides with what the first contract's defaults were, where nothing is set."""
    unset = {name: value for name, value in options.legacy.items() if name not in options.model_fields_set}
    own = [f"{prefix}.{name}={json.dumps(value)}" for name, value in unset.items()]
    nested = [legacy(value, f"{prefix}.{name}") for name, value in options if isinstance(value, Options)]
    return [*own, *itertools.chain(*nested)]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


def vit_features() -> dict[str, Tensor]:
    """Of two drawn images, at the size that the network is built for and at another one."""
    torch.manual_seed(0)
    network = ViTTiny.build(ViTTiny.Options(patch_size=8, depth=2), 3, 32).eval()
    found = {}
    for side in (32, 48):
        with torch.no_grad():
            features = network(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side)))
        found |= {f"{side}.pooled": features.pooled.contiguous(), f"{side}.tokens": features.tokens.contiguous()}
    return found


def write(folder: Path) -> None:
    folder.mkdir()
    about: dict[str, Any] = {"machine": machine(), "losses": {}}
    for name in NAMES:
        done = run(name, folder / "run")
        shutil.copy(checkpoint_path(done / "checkpoints", STEPS), folder / f"{name}.safetensors")
        about["losses"][name] = losses(done)
        if name in EXPORTED:
            shutil.copy(done / "backbone.safetensors", folder / f"{name} backbone.safetensors")
        shutil.rmtree(done)
    save_file(vit_features(), folder / "vit.safetensors")
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


#: Methods whose exported file is kept: the student's backbone of one, the teacher's of the other.
EXPORTED = ("simclr", "dino")


@pytest.fixture(scope="module")
def about() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "about.json").read_text())
    return found


def assert_same(found: dict[str, Tensor], before: dict[str, Tensor], about: dict[str, Any]) -> None:
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        if about["machine"] == machine():
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_what_it_was_and_one_of_then_can_be_resumed(name: str, tmp_path: Path, about: dict[str, Any]) -> None:
    config = method_config(name)
    as_then = [*legacy(config.method.options, "method"), *legacy(config.backbone.options, "backbone")]
    done, path = run(name, tmp_path / "run", *as_then), FOLDER / f"{name}.safetensors"
    before = read_checkpoint(path)
    found = newest(done)
    assert_same(found.tensors, before.tensors, about)
    assert found.document["numbers"] == before.document["numbers"]
    assert found.document["config"].keys() == before.document["config"].keys()
    assert found.document["encoder"] == before.document["encoder"]
    assert losses(done) == (
        about["losses"][name] if about["machine"] == machine() else pytest.approx(about["losses"][name], rel=1e-3)
    )
    if name in EXPORTED:
        (tensors, document), (tensors_before, document_before) = (
            read(path) for path in (done / "backbone.safetensors", FOLDER / f"{name} backbone.safetensors")
        )
        assert_same(tensors, tensors_before, about)
        assert document.keys() == document_before.keys()
    old = shutil.copytree(done, tmp_path / "old")
    shutil.copy(path, checkpoint_path(old / "checkpoints", STEPS))
    one_more = f"training.max_steps={STEPS + 1}"
    resumed = newest(run(name, old, one_more, resume=True))
    continued = newest(run(name, done, *as_then, one_more, resume=True))
    assert resumed.step == STEPS + 1
    assert resumed.document["config"] == continued.document["config"]
    assert_same(resumed.tensors, continued.tensors, about)


def test_features_of_a_vit_are_what_they_were(about: dict[str, Any]) -> None:
    assert_same(vit_features(), load_file(FOLDER / "vit.safetensors"), about)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
