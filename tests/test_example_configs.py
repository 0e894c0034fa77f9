"""Every config that we ship is valid and trains, through the command line, for two steps at a reduced size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_options import SMALL
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.config.resolve import RunConfig, load_config
from sslcli.plugins import find
from sslcli.runs.directory import read_metrics

ROOT = Path(__file__).parents[1] / "examples" / "configs"
CONFIGS = sorted(ROOT.rglob("*.yaml"))
METHODS = [plugin.name for plugin in find("methods") if plugin.package == "sslcli"]
REDUCED = [
    "data={name: shapes, count: 64, size: 32}", "views.size=32", "training.batch_size=16", "training.max_steps=2",
    "training.log_every=1", "training.device=cpu", "callbacks={knn: null, online_probe: null, tensorboard: null}",
]  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def reductions(config: RunConfig) -> Iterator[str]:
    """Overrides that make the backbone and the method's heads and queues small, whichever they are."""
    backbone = config.backbone.options.plain()
    if "width" in backbone:
        yield "backbone.width=4"
    if "stem" in backbone:
        yield "backbone.stem=small"  # local views are smaller than the other one takes
    if "depth" in backbone:
        yield "backbone.depth=1"
    yield from _heads("method", config.method.options.plain())


def _heads(prefix: str, options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _heads(f"{prefix}.{name}", value)
        elif name in SMALL and value:  # a queue of 0 is none
            yield f"{prefix}.{name}={SMALL[name]}"


def test_there_is_a_config_for_the_quickstart_and_for_own_images():
    assert {"quickstart.yaml", "images/simclr.yaml", "stl10/moco_v2.yaml"} <= {name_of(path) for path in CONFIGS}


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_config(method, data):
    config = load_config(ROOT / data / f"{method}.yaml", [])
    assert (config.method.name, config.data.name) == (method, data)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_an_example_config_says_where_it_is_from_and_reads_no_folder_of_ours(path):
    assert path.read_text().startswith("# ")
    config = load_config(path, [])
    assert not Path(config.data.options.plain().get("root", ".")).is_absolute()
    folder = path.parent.name
    assert folder in ("configs", config.data.name)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_an_example_config_trains(path, tmp_path):
    overrides = [*REDUCED, *reductions(load_config(path, []))]
    done = CliRunner().invoke(app, ["train", str(path), *overrides, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "run" / "backbone.safetensors").exists()
