"""Our evaluators beside scikit-learn's, lightly's and torch's own, on the features of one exported network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmark_helpers import Import, benchmark  # noqa: F401  # a fixture
from conftest import ConfigMaker
from tiny_data import tiny_root, write_cifar10  # noqa: F401  # the first is a fixture

from sslcli.config.document import Document
from sslcli.evaluation.parts import open_parts
from sslcli.training.train import train

# ruff: noqa: F811

pytestmark = pytest.mark.slow


def test_all_agree_and_the_spread_adds_up(
    benchmark: Import, tiny: ConfigMaker, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    module = benchmark("evaluation")
    monkeypatch.setattr(module, "NEIGHBORS", ((5, 0.07), (30, 0.1)))
    write_cifar10(tiny_root)
    run, data = tmp_path / "run", {"name": "cifar10", "root": str(tiny_root)}
    train(tiny(f"data={{name: cifar10, root: {tiny_root}}}", "training.max_steps=1"), run)
    parts = module.chosen_of(open_parts(data, Document({}, {}), needs_labels=True), 100, 20)
    found = module.agreement(run, tiny_root, parts, 3)
    (features,) = found.pop("features")
    assert features["outputs"] < 1e-5
    for name, (ours, *others) in found.items():
        assert len(others) >= 2
        assert ours["top1"] == ours["ssl eval"]
        for other in others:
            exact = other["by"] in ("scikit-learn", "lightly", "torch's LBFGS, float64", "torch, our order")
            if exact:
                assert (other["different"], other.get("outputs", 0) < 1e-3) == (0, True), (name, other)
    monkeypatch.setattr(module, "PART", 5)
    spread = module.spreads([run, run], parts, 3, 2)
    assert len(spread["top1"]) == 3
    assert spread["printed for three seeds"]["root mean square"] == pytest.approx(spread["over seeds"])
    assert spread["over networks"]["std"] == 0
    assert torch.isfinite(torch.tensor(spread["over parts of 5 test images"]["seen"]))
