"""The memory format of a network, and that no network crashes in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslcli.plugins import load
from sslcli.runs.device import memory_format

CRASHING = ("method=simsiam", "backbone={name: resnet18, width: 8}", "data={name: shapes, count: 64, size: 96}",
            "views.size=96", "training={epochs: 1, batch_size: 64, max_steps: 1, compile: none, device: cpu}",
            "schedule.warmup_epochs=0", "callbacks.knn=null")  # fmt: skip


@pytest.mark.parametrize(("width", "device", "expected"), [
    (16, "cpu", torch.channels_last), (8, "cpu", torch.contiguous_format), (8, "cuda", torch.channels_last),
])  # fmt: skip
def test_narrow_strided_convolutions_are_contiguous_on_a_cpu(width: int, device: str, expected: object) -> None:
    cls = load("backbones", "resnet18")
    backbone = cls.build(cls.Options.parse({"width": width}), 3, 32)
    assert memory_format(backbone, torch.device(device)) is expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_narrow_network_does_not_crash(tmp_path: Path, precision: str) -> None:
    (tmp_path / "c.yaml").write_text("{}")
    words = ["-m", "sslcli", "train", "c.yaml", *CRASHING, f"training.precision={precision}", "--output", "run"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training.channels_last: off, since torch crashes") == 1
