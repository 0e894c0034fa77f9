"""Two global views and a local one, in the training loop, with every method that takes any number of views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_helpers import method_config, newest
from small_options import quick

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.method import Batch, View
from sslcli.plugins import find, load
from sslcli.runs.metrics import read_metrics
from sslcli.training.setup import build
from sslcli.training.train import train

METHODS = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
TAKING_ANY = [name for name in METHODS if load("methods", name).view_count is None]
NAMES = pytest.mark.parametrize("name", TAKING_ANY)
#: Those that differ in how they use local views: each pair, against a momentum encoder, against a queue, prototypes.
SOME = pytest.mark.parametrize("name", quick(TAKING_ANY, "simclr", "byol", "moco_v2", "swav"))


def config(name: str, *sizes: int) -> RunConfig:
    """Two steps of a method with small heads, on views of these sizes."""
    views = ", ".join(f"{{size: {size}, crop_scale: [0.2, 1.0], flip: 0.5}}" for size in sizes)
    return method_config(name, "training.max_steps=2", "training.log_every=1", f"views=[{views}]")


@SOME
def test_a_run_with_a_local_view_learns(name: str, tmp_path: Path) -> None:
    begun = build(config(name, 16, 16, 8)).method.state_dict()
    train(config(name, 16, 16, 8), tmp_path / "a")
    assert [line["step"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [1, 2]
    ended = newest(tmp_path / "a").tensors
    assert all(tensor.isfinite().all() for tensor in ended.values())
    kernel = "backbone.network.conv1.weight"
    assert not torch.equal(ended[f"method.{kernel}"], begun[kernel])


@NAMES
def test_a_gradient_reaches_the_local_view(name: str) -> None:
    """And the first view; the second one may only be a key."""
    method = build(config(name, 16, 16, 8)).method.train()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, side, side, generator=generator).requires_grad_() for side in (16, 16, 8)]
    schedule = {key: torch.tensor(float(function(0))) for key, function in method.schedules().items()}
    labels = torch.arange(8) % 4
    method(Batch([View(image) for image in images], labels, torch.arange(8), schedule)).loss.backward()
    for image in (images[0], images[-1]):
        assert image.grad is not None
        assert image.grad.isfinite().all()
        assert image.grad.abs().sum() > 0


@NAMES
def test_views_in_the_wrong_order_and_a_single_view_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"views: {name} needs"):
        train(config(name, 8, 16, 16), tmp_path / "a")
    with pytest.raises(ConfigError, match=f"views: '{name}' needs (at least )?2 views of an image, not 1"):
        config(name, 16)
