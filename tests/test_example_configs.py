"""Every config that we ship is valid and trains, through the command line, for two steps at a reduced size."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.runs.directory import read_metrics

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").rglob("*.yaml"))
SMALL = [
    "data={name: shapes, count: 64, size: 32}", "views.size=32", "backbone.width=4", "training.batch_size=16",
    "training.max_steps=2", "training.log_every=1", "training.device=cpu", "callbacks={knn: null, tensorboard: null}",
]  # fmt: skip


def test_there_is_a_config_for_the_quickstart_and_for_each_data_set():
    names = {str(path.relative_to(CONFIGS[0].parents[1])) for path in CONFIGS}
    assert {"quickstart.yaml", "cifar10/simclr.yaml", "cifar10/simsiam.yaml", "cifar10/byol.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_example_config_trains(path, tmp_path):
    done = CliRunner().invoke(app, ["train", str(path), *SMALL, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert (tmp_path / "run" / "backbone.safetensors").exists()
