"""Two global views and a local one, through the real loop, with every method that takes any number of views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_options import small

from sslcli.config.resolve import RunConfig
from sslcli.contracts.errors import ConfigError, UserError
from sslcli.contracts.method import Batch, View
from sslcli.plugins import find, load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.runs.directory import read_metrics
from sslcli.training.setup import build
from sslcli.training.train import train

NAMES = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]


def views(*sizes: int) -> str:
    """A list of views, as it would stand in a config."""
    return "views=[" + ", ".join(f"{{size: {size}, crop_scale: [0.2, 1.0], flip: 0.5}}" for size in sizes) + "]"


def config(tiny, name: str, *overrides: str) -> RunConfig:
    """Two steps of a method with small heads; a test of views that the method doesn't take is skipped."""
    if load("methods", name).view_count is not None:
        pytest.skip(f"{name} takes a fixed number of views")
    method = {"name": name, **small(load("methods", name).Options)}
    return tiny(f"method={method!r}", "training.max_steps=2", "training.log_every=1", *overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_a_local_view_learns(name: str, tiny, tmp_path: Path) -> None:
    wanted = config(tiny, name, views(16, 16, 8))
    begun = build(wanted).method
    train(wanted, tmp_path / "a")
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    ended = read_checkpoint(list_checkpoints(tmp_path / "a" / "checkpoints")[0]).tensors
    assert all(tensor.isfinite().all() for tensor in ended.values())
    trained = [key for key, parameter in begun.named_parameters() if parameter.requires_grad]
    moved = [key for key in trained if not torch.equal(ended[f"method.{key}"], begun.state_dict()[key])]
    assert "backbone.network.conv1.weight" in moved


@pytest.mark.parametrize("name", NAMES)
def test_a_local_view_takes_part(name: str, tiny) -> None:
    """A gradient reaches it, and the first view; the second is only a key where the views have different parts."""
    method = build(config(tiny, name, views(16, 16, 8))).method.train()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, side, side, generator=generator).requires_grad_() for side in (16, 16, 8)]
    schedule = {key: torch.tensor(float(function(0))) for key, function in method.schedules().items()}
    labels = torch.arange(8) % 4
    method(Batch([View(image) for image in images], labels, torch.arange(8), schedule)).loss.backward()
    for image in (images[0], images[-1]):
        assert image.grad is not None
        assert image.grad.isfinite().all()
        assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_local_views_before_the_global_ones_are_refused(name: str, tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"views: {name} needs"):
        train(config(tiny, name, views(8, 16, 16)), tmp_path / "a")


@pytest.mark.parametrize("name", NAMES)
def test_a_single_view_is_refused_with_the_config(name: str, tiny) -> None:
    with pytest.raises(ConfigError, match=f"views: '{name}' needs (at least )?2 views of an image, not 1"):
        config(tiny, name, views(16))
