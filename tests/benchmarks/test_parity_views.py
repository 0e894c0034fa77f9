"""The views that lightly and sslcli are given in `parity.py` have the same distribution, on CIFAR-10's images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture
from torch import Tensor

from sslcli.runs.directory import RunDirectory
from sslcli.training.context import Context
from sslcli.training.loop import Loop
from sslcli.training.setup import build

# ruff: noqa: F811

IMAGES = 2048


def measures(views: Tensor) -> Tensor:
    """Of each image: the channels' means, contrast, sharpness, and how colorful it is."""
    sharpness = (views[..., 1:] - views[..., :-1]).abs().mean((1, 2, 3))
    color = (views.amax(1) - views.amin(1)).mean((1, 2))
    return torch.stack([*views.mean((2, 3)).T, views.std((2, 3)).mean(1), sharpness, color], 1).double()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "byol", "simsiam", "moco_v2", "swav", "dino", "vicreg"])
def test_views_of_both_tools_have_the_same_distribution(benchmark: Import, method: str, tmp_path: Path) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed: pip install 'sslcli[benchmark]'")
    root = Path(os.environ.get("SSLCLI_TEST_DATA", "-")) / "cifar10"
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("set SSLCLI_TEST_DATA to a folder with cifar10/cifar-10-batches-py")
    config = benchmark("parity_settings").resolved(method, "fp32", IMAGES, 1, root, seed=1)
    session = build(config, compiled=False)
    loop, info = Loop(session, Context(session, RunDirectory(tmp_path)), 0), session.info
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.data.mean, info.data.std))
    epoch = [next(loop.batches)[0] for _ in range(info.total_steps)]
    ours = [[measures(view * std + mean) for view in loop.make_views(batch)] for batch in epoch]
    torch.manual_seed(0)
    loaded = benchmark("parity_lightly_views").batches(config, root, info.data.mean, info.data.std)
    theirs = [[measures(view * std + mean) for view in views] for views in loaded]
    for number in range(2):
        a, b = (torch.cat([views[number] for views in each]) for each in (ours, theirs))
        assert len(a) == len(b) == IMAGES
        errors = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)) / errors).abs().max() < 4
        assert ((a.std(0) / b.std(0)) - 1).abs().max() < 0.1
