"""Only finite values are written, and only finite values are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ConfigMaker
from run_helpers import poison, refused, ssl
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslcli.contracts.errors import SslError, UserError
from sslcli.runs import files
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.checkpoint import checkpoint_path
from sslcli.runs.finite import first_non_finite
from sslcli.runs.trained import load_trained
from sslcli.training.train import train

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn]


def test_what_is_finite_passes() -> None:
    good: dict[str, Tensor] = {str(dtype): torch.full((3, 2), 3.0).to(dtype) for dtype in FLOATS}
    good |= {"large": torch.full((2,), 1e300, dtype=torch.float64), "empty": torch.empty(0), "count": torch.tensor(7)}
    good |= {
        "flags": torch.tensor([True, False]),
        "mask": torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -INF),
    }
    assert first_non_finite(good) is None
    assert first_non_finite({}) is None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", FLOATS[:-1], ids=str)
def test_one_value_is_found_in_any_type(value: float, dtype: torch.dtype) -> None:
    bad = torch.ones(5, 3, dtype=dtype)
    bad[3, 1] = value
    assert first_non_finite({"good": torch.ones(2), "count": torch.tensor(1), "bad": bad, "worse": bad}) == "bad"
    assert first_non_finite({"view": bad.t()}) == "view"


def test_minus_infinity_alone_is_no_mask() -> None:
    assert first_non_finite({"weights": torch.full((3,), -INF)}) == "weights"
    assert first_non_finite({"weights": torch.tensor([0.0, INF])}) == "weights"


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    with pytest.raises(SslError, match=r"f: is not written: x is not finite"):
        files.write(tmp_path / "f", {"x": torch.tensor([1.0, NAN])}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tiny: ConfigMaker, tmp_path: Path) -> Path:
    """A run with checkpoints at the steps 4 and 8, the newer one with an infinite weight, and a backbone with NaN."""
    train(tiny("training.epochs=2"), tmp_path / "run")
    poison(checkpoint_path(tmp_path / "run/checkpoints", 8), "method.backbone.network.conv1.weight", INF)
    poison(tmp_path / "run/backbone.safetensors", "conv1.weight", NAN)
    return tmp_path / "run"


def test_checkpoints_that_are_not_finite_are_passed_over(run: Path, tmp_path: Path) -> None:
    named = f"{checkpoint_path(run / 'checkpoints', 8)}: method.backbone.network.conv1.weight is not finite"
    assert load_trained(run).card.step == 4
    code, _, err = ssl("export", "backbone", run, "--output", tmp_path / "out.safetensors")
    assert (code, err.count(named)) == (0, 1)
    assert load_backbone_file(tmp_path / "out.safetensors").card.step == 4
    code, _, err = ssl("train", run, "--resume")
    assert (code, err.count(named)) == (0, 1), err
    assert first_non_finite(load_file(checkpoint_path(run / "checkpoints", 8))) is None
    assert load_trained(run).card.step == 8


def test_what_is_not_finite_is_refused_wherever_weights_come_from(run: Path, tmp_path: Path) -> None:
    backbone, pth = run / "backbone.safetensors", tmp_path / "w.pth"
    foreign = tmp_path / "foreign.safetensors"
    torch.save(load_file(backbone), pth)
    save_file(load_file(backbone), foreign)
    start: list[Any] = ["train", run / "config.yaml", "--output", tmp_path / "new"]
    card = files.read_document(checkpoint_path(run / "checkpoints", 4))["card"]["backbone"]
    network = [
        f"backbone.{name}={json.dumps(value)}" for name, value in card.items() if name in ("name", "stem", "width")
    ]
    for command in (
        ["eval", backbone, "--method", "knn"],
        ["export", "backbone", backbone, "--output", tmp_path / "x.safetensors"],
        [*start, f"backbone.weights={backbone}"],
        [*start, f"backbone.weights={foreign}"],
        ["eval", pth, "--method", "knn", "data=shapes", "data.size=16", "data.count=32", *network],
        ["eval", foreign, "--method", "knn", "data=shapes", "data.size=16", "data.count=32", *network],
    ):
        assert "'conv1.weight' is not finite" in refused(*command).replace(": conv1.weight", ": 'conv1.weight'"), (
            command
        )
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(UserError, match=r"conv1\.weight is not finite"):
        load_trained(backbone)
