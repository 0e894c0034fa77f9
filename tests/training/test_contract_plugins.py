"""Masked methods as plugin files that use nothing private: they train, resume to the bit, evaluate and export."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import assert_same_end, newest

import sslcli
from sslcli import plugins
from sslcli.backbones.vit import ViTTiny
from sslcli.contracts.errors import UserError
from sslcli.plugins import load, register_file
from sslcli.runs.metrics import read_metrics
from sslcli.testing import check_method
from sslcli.training.train import train

FOLDER = Path(__file__).parents[1] / "contract_plugins"
SMALL = {
    "masked_autoencoder": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "jepa": {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, "blocks": 2, "scale": 0.1},
}
NAMES = list(SMALL)
BACKBONE = ["backbone={name: vit_tiny, patch_size: 4, depth: 2}", "optimizer={name: adamw, lr: 1e-3}"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for name in NAMES:
        register_file(FOLDER / f"{name}.py")
    yield
    plugins.clear_cache()


def options(name: str, *more: str) -> list[str]:
    values = ", ".join(f"{key}: {value}" for key, value in SMALL[name].items())
    return [f"method={{name: {name}, {values}}}", *BACKBONE, *more]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_and_uses_nothing_private(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 90
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslcli"):
            assert (node.module or "").split(".")[1] in ("contracts", "modules", "losses", "distributed", "runs")
            assert not any(each.name.startswith("_") for each in node.names)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr == "__init__"


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name: str) -> None:
    build = lambda: ViTTiny.build(ViTTiny.Options(patch_size=4, depth=2), 3, 16)  # noqa: E731
    check_method(load("methods", name), SMALL[name], backbone=build)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_trains_and_resumes_to_the_bit(name: str, precision: str, tiny: Any, tmp_path: Path) -> None:
    more = options(name, f"training.precision={precision}", "backbone.gradient_checkpointing=true")
    train(tiny(*more), tmp_path / "whole")
    train(tiny(*more, "training.max_steps=5"), tmp_path / "parts")
    train(tiny(*more), tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_are_the_whole_batch(name: str, tiny: Any, tmp_path: Path) -> None:
    """Masks are those of the images, so that only rounding differs."""
    for accumulate in (1, 2):
        train(
            tiny(*options(name), f"training.accumulate={accumulate}", "training.max_steps=1"),
            tmp_path / str(accumulate),
        )
    one, two = (newest(tmp_path / str(accumulate)).tensors for accumulate in (1, 2))
    for key, tensor in one.items():
        if key.startswith("method.") and tensor.is_floating_point():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=3e-3, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_its_backbone_is_evaluated_and_exported(name: str, tiny: Any, tmp_path: Path) -> None:
    train(tiny(*options(name), "training.epochs=1"), tmp_path / "run")
    assert 0 <= sslcli.evaluate(tmp_path / "run", "knn", {"k": [3]}).metrics["top1"] <= 1
    sslcli.export(tmp_path / "run", "backbone", tmp_path / "net.safetensors")
    backbone = sslcli.load_backbone(tmp_path / "net.safetensors")
    assert backbone(torch.zeros(1, 3, 16, 16)).pooled.shape == (1, 192)
    assert not any("mask_token" in key for key in backbone.state_dict())


def test_another_network_is_refused_in_one_line(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^method: masked_autoencoder needs a vision transformer[^\n]*$"):
        train(tiny("method=masked_autoencoder"), tmp_path / "run")
