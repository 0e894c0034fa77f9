"""Every example config is valid and trains, through the command line, for two steps at a reduced size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_options import REQUIRED, reduced
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.config.document import read_file
from sslcli.config.resolve import RunConfig, load_config
from sslcli.plugins import find
from sslcli.runs.metrics import read_metrics

ROOT = Path(__file__).parents[1] / "examples" / "configs"
CONFIGS = sorted(ROOT.rglob("*.yaml"))
REDUCED = [
    "data={name: shapes, count: 64, size: 32}", "views.size=32", "training.batch_size=16", "training.max_steps=2",
    "training.log_every=1", "training.device=cpu", "callbacks={knn: null, online_probe: null, tensorboard: null}",
]  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def reductions(config: RunConfig) -> Iterator[str]:
    """Overrides that make the backbone and the method's heads and queues small, whichever they are."""
    if "stem" in config.backbone.options.plain():
        yield "backbone.stem=small"  # local views are too small for the other one
    yield from (f"method.{name}={make()}" for name, make in REQUIRED.items() if name in config.method.options.plain())
    for section, choice in (("backbone", config.backbone), ("method", config.method)):
        yield from _dotted(section, reduced(choice.options.plain()))


def _dotted(prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}={value}"


def test_there_is_a_config_for_the_quickstart_and_for_each_method_on_own_images():
    methods = {f"images/{plugin.name}.yaml" for plugin in find("methods") if plugin.package == "sslcli"}
    assert methods | {"quickstart.yaml", "stl10/moco_v2.yaml"} <= {name_of(path) for path in CONFIGS}


@pytest.mark.parametrize("path", sorted((ROOT / "images").iterdir()), ids=name_of)
def test_a_config_for_own_images_leaves_the_recipe_to_the_method(path):
    data = read_file(path).data
    assert {*data} == {"method", "backbone", "data", "training"}
    assert {*data["training"]} == {"epochs"}
    assert data["method"] in (
        path.stem, {"name": "simclr", "temperature": 0.1}, {"name": "distillation", "teacher": "torchvision/resnet50"}
    )  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_an_example_config_names_its_source_and_is_named_by_data_set_and_method(path):
    assert path.read_text().startswith("# ")
    config = load_config(path, [])
    assert not Path(config.data.options.plain().get("root", ".")).is_absolute()
    if path.parent != ROOT:
        assert path.parent.name == ("images" if config.data.name == "folder" else config.data.name)
        assert path.stem.startswith(config.method.name)


# Those for own images are recipes, which `tests/methods` trains; one shows that such a file trains as it is.
TRAINED = [path for path in CONFIGS if path.parent.name != "images" or path.stem == "simclr"]


QUICK = ("quickstart.yaml", "cifar10/simclr.yaml", "images/simclr.yaml")


@pytest.mark.parametrize(
    "path",
    [path if name_of(path) in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in TRAINED],
    ids=name_of,
)
def test_an_example_config_trains(path, tmp_path):
    overrides = [*REDUCED, *reductions(load_config(path, []))]
    done = CliRunner().invoke(app, ["train", str(path), *overrides, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "run" / "backbone.safetensors").exists()
