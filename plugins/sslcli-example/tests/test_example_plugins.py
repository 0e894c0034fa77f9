"""The package's plugins: sslcli's conformance checks on each, and the formulas that are its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from sslcli_example.align_uniform import alignment, uniformity
from sslcli_example.arrays import Arrays, ArraysOptions
from sslcli_example.best import Best, BestOptions
from sslcli_example.cutout import Cutout, CutoutOptions
from sslcli_example.lion import Lion
from sslcli_example.nearest_mean import class_means
from sslcli_example.npz import NpzExporter, NpzOptions
from sslcli_example.warmup_stable_decay import WarmupStableDecay, WarmupStableDecayOptions

from sslcli.contracts.errors import UserError
from sslcli.testing import check_plugin
from sslcli.testing.stand_ins import WatchedRun, small_trained

#: Options that make each plugin small, or let it do something in a short run.
SMALL: dict[tuple[str, str], dict[str, Any]] = {
    ("methods", "align_uniform"): {"projector": {"hidden_dim": 16, "output_dim": 8}},
    ("backbones", "convmixer"): {"dim": 8, "depth": 2},
    ("datasets", "arrays"): {},
    ("augmentations", "cutout"): {},
    ("optimizers", "lion"): {},
    ("schedules", "warmup_stable_decay"): {"warmup": 0.2},
    ("evaluators", "nearest_mean"): {},
    ("exporters", "npz"): {},
    ("callbacks", "best"): {"metric": "loss", "mode": "min"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "images.npy", draw.integers(0, 256, (count, 12, 10, 3), dtype=np.uint8))
        np.save(tmp_path / split / "labels.npy", np.arange(count) % 3)
    return tmp_path


@pytest.mark.parametrize(("group", "name"), SMALL)
def test_every_plugin_keeps_its_contract(group: str, name: str, root: Path) -> None:
    options = {"root": str(root)} if group == "datasets" else {}
    check_plugin(group, f"sslcli-example:{name}", {**SMALL[group, name], **options})


def test_alignment_and_uniformity_are_the_papers() -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    for alpha in (1.0, 2.0, 3.0):
        torch.testing.assert_close(alignment(a, b, alpha), (a - b).norm(dim=1).pow(alpha).mean())
    torch.testing.assert_close(uniformity(a, 2.0), torch.pdist(a).square().mul(-2.0).exp().mean().log())


def test_lion_steps_along_the_sign_and_decays_separately() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    weight.grad = torch.tensor([0.5, -0.5, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85]))
    torch.testing.assert_close(optimizer.state[weight]["momentum"], 0.01 * weight.grad)


def test_cutout_masks_a_square_of_the_given_size() -> None:
    operation = Cutout(CutoutOptions(p=1.0, side=0.5, fill=0.0), size=8)
    inside = operation.parameters(torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[8, 8]]))
    corner = operation.parameters(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[8, 8]]))
    assert int((operation.apply(torch.ones(1, 3, 8, 8), inside) == 0).sum()) == 3 * 16
    assert int((operation.apply(torch.ones(1, 3, 8, 8), corner) == 0).sum()) == 3 * 4
    off = Cutout(CutoutOptions(p=0.0), size=8).parameters(torch.rand(4, 3), torch.full((4, 2), 8))
    assert not off["chosen"].any()


def test_arrays_name_the_file_that_is_wrong(root: Path) -> None:
    np.save(root / "train" / "images.npy", np.zeros((24, 12, 10, 3)))
    with pytest.raises(UserError, match=r"images.npy holds float64 \(24, 12, 10, 3\); save uint8"):
        Arrays(ArraysOptions(root=root))
    np.save(root / "test" / "labels.npy", np.arange(12))
    with pytest.raises(UserError, match=r"test/labels.npy has labels 0 to 11; the classes are 0 to 2"):
        Arrays(ArraysOptions(root=root, split="test"))


def test_arrays_without_labels_are_not_used_for_evaluation(root: Path) -> None:
    assert Arrays.labeled(ArraysOptions(root=root), "eval") is not None
    (root / "test" / "labels.npy").unlink()
    options = ArraysOptions(root=root, split="test")
    assert Arrays(options).labels is None
    assert Arrays.labeled(options, "eval") is None


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_the_schedule_warms_up_stays_and_decays(shape: Any, middle: float) -> None:
    options = WarmupStableDecayOptions(warmup=0.2, decay=0.4, shape=shape, final=0.1)
    schedule = WarmupStableDecay(options, 2.0, 10, 5)
    assert [schedule(step) for step in range(7)] == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert schedule(8) == pytest.approx(2 * (0.1 + 0.9 * middle))
    assert schedule(10) == pytest.approx(0.2)
    with pytest.raises(ValidationError, match="longer than the run"):
        WarmupStableDecayOptions(warmup=0.7, decay=0.4)


def test_class_means_are_the_means_of_each_class() -> None:
    features, labels = torch.randn(10, 3), torch.tensor([0, 2] * 5)
    means = class_means(features, labels, 3)
    torch.testing.assert_close(means[0], features[labels == 0].mean(dim=0))
    torch.testing.assert_close(means[2], features[labels == 2].mean(dim=0))
    assert means[1].isnan().all()


def test_an_npz_file_has_the_weights_and_the_card(tmp_path: Path) -> None:
    trained = small_trained()
    exported = NpzExporter(NpzOptions(dtype="float16")).export(trained, tmp_path / "b.npz")
    names: dict[str, Any] = {}
    exec(exported.how_to_load, names)
    state, _ = trained.backbone.export_state()
    assert names["arrays"].keys() == state.keys()
    for name, array in names["arrays"].items():
        torch.testing.assert_close(torch.from_numpy(array).to(state[name].dtype), state[name], rtol=1e-3, atol=1e-4)
    assert names["card"]["feature_dim"] == trained.card.feature_dim
    assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]


def test_the_best_value_is_kept_in_a_file_and_across_restarts(tmp_path: Path) -> None:
    run, best = WatchedRun(tmp_path), Best(BestOptions(metric="top1"))
    for step, record in enumerate([{}, {"top1": 0.5}, {"top1": 0.75}, {"top1": 0.25}]):
        best.on_log(run, {"step": step, **record})
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "top1", "value": 0.75, "step": 2}
    resumed = Best(BestOptions(metric="top1"))
    resumed.load_state_dict(best.state_dict())
    resumed.on_log(run, {"step": 4, "top1": 0.5})
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
