"""The accuracy ladder: every config says where it is from, resolves, trains; what judges it can be asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from benchmark_helpers import ROOT, Import, benchmark  # noqa: F401  # a fixture
from run_helpers import done

from sslcli.cli.evaluate import split_words
from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import load_config
from sslcli.plugins import load
from sslcli.runs.metrics import read_metrics

# ruff: noqa: F811

CONFIGS = sorted((ROOT / "benchmarks/ladder").glob("*.yaml"))
SMALL = [
    "backbone.width=2", "method.projector={hidden_dim: 8, output_dim: 4}", "training.batch_size=16",
    "data={name: shapes, count: 64, size: 32}", "training.log_every=1", "training.device=cpu",
    "training.precision=fp32", "training.compile=none",
    "callbacks={knn: null, online_probe: null, tensorboard: null, progress: null}",
]  # fmt: skip


@pytest.fixture
def rungs(benchmark: Import) -> Any:
    return benchmark("gpu.rungs")


def test_every_config_is_a_rungs_and_every_rungs_exists(rungs: Any) -> None:
    named = {ROOT / rung.config for rung in rungs.RUNGS.values()}
    assert named == {*CONFIGS, ROOT / "examples/configs/cifar10/simclr.yaml"}
    assert rungs.rungs_of("G0") == ["G0-simclr", "G0-vicreg", "G0-byol", "G0-swav"]
    assert rungs.rungs_of("G1") == ["G1"]
    assert rungs.rungs_of("G") == []


@pytest.mark.parametrize(("name", "epochs", "steps"), [("g1", 100, 97), ("g3", 300, 195), ("g4", 500, 97)])
def test_a_rung_trains_on_the_images_that_its_time_is_predicted_from(
    rungs: Any, name: str, epochs: int, steps: int
) -> None:
    config = load_config(ROOT / f"benchmarks/ladder/{name}.yaml", [])
    assert config.training.epochs == epochs
    assert 50_000 // config.training.batch_size == steps
    assert rungs.RUNGS[name.upper()].images == epochs * 50_000


def test_g0_is_thirty_epochs_of_the_published_thousand() -> None:
    for path in CONFIGS:
        if path.stem.startswith("g0-"):
            method = path.stem.removeprefix("g0-")
            source = {"simclr": "simclr-1000"}.get(method, method)
            ours = load_config(path, []).plain()
            theirs = load_config(ROOT / f"examples/configs/cifar10/{source}.yaml", []).plain()
            assert ours["training"].pop("max_steps") == 30 * (50_000 // ours["training"]["batch_size"])
            del theirs["training"]["max_steps"], ours["callbacks"], theirs["callbacks"]
            assert ours == theirs


def test_g4_is_g1_with_another_length_and_rate() -> None:
    first, last = (load_config(ROOT / f"benchmarks/ladder/{name}.yaml", []).plain() for name in ("g1", "g4"))
    assert (first["optimizer"].pop("lr"), last["optimizer"].pop("lr")) == (0.06, 0.03)
    for config in (first, last):
        assert config["schedule"]["warmup_epochs"] == 0
        assert config["optimizer"]["exclude"] == []
        del config["training"]["epochs"], config["callbacks"]
    assert first == last


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_its_source_and_its_figures(rungs: Any, path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    (rung,) = [each for each in rungs.RUNGS.values() if each.config == f"benchmarks/ladder/{path.name}"]
    assert rung.source.lower() in comment.lower()
    assert "Deviations:" in comment
    for published in rung.published.values():
        number = published.split()[0]
        assert number in comment or f".{number.replace('.', '')}" in comment


def test_every_variant_of_the_speed_stage_resolves(benchmark: Import) -> None:
    stages = benchmark("gpu.stages")
    for overrides in stages.VARIANTS.values():
        config = load_config(stages.CONFIG, list(overrides))
        assert config.training.compile in ("none", "views", "all")
        assert config.training.cuda_graphs <= (config.training.compile != "none")


def test_what_judges_a_rung_can_be_asked_for(rungs: Any) -> None:
    for rung in rungs.RUNGS.values():
        assert rung.published.keys() == rung.evaluations.keys()
        for method, *words in rung.evaluations.values():
            _, overrides = split_words(["run", *words])
            document = Document({}, {(): ""})
            apply_overrides(document, overrides)
            load("evaluators", method).Options.parse(document.data)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_rung_trains_for_two_steps(path: Path, tmp_path: Path) -> None:
    heads = {"byol": ["method.predictor.hidden_dim=8"], "swav": ["method.prototypes=8", "method.queue_size=32"]}
    more = heads.get(path.stem.removeprefix("g0-"), [])
    words = [*SMALL, *more, "training.max_steps=2"]
    done("train", path, *words, "--output", tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
