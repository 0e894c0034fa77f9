"""The package's plugins: sslcli's conformance checks on each, and the formulas that are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sslcli_example.align_uniform import alignment, uniformity
from sslcli_example.arrays import Arrays, ArraysOptions
from sslcli_example.cutout import Cutout, CutoutOptions
from sslcli_example.lion import Lion

from sslcli.contracts.errors import UserError
from sslcli.testing import check_plugin


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "images.npy", draw.integers(0, 256, (count, 12, 10, 3), dtype=np.uint8))
        np.save(tmp_path / split / "labels.npy", np.arange(count) % 3)
    return tmp_path


def test_every_plugin_keeps_its_contract(root: Path) -> None:
    small: dict[tuple[str, str], dict[str, Any]] = {
        ("methods", "align_uniform"): {"projector": {"hidden_dim": 16, "output_dim": 8}},
        ("backbones", "convmixer"): {"dim": 8, "depth": 2},
        ("datasets", "arrays"): {"root": str(root)},
        ("augmentations", "cutout"): {},
        ("optimizers", "lion"): {},
    }
    for (group, name), options in small.items():
        check_plugin(group, f"sslcli-example:{name}", options)


def test_alignment_and_uniformity_are_the_papers() -> None:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    for alpha in (1.0, 2.0, 3.0):
        torch.testing.assert_close(alignment(a, b, alpha), (a - b).norm(dim=1).pow(alpha).mean())
    torch.testing.assert_close(uniformity(a, 2.0), torch.pdist(a).square().mul(-2.0).exp().mean().log())


def test_lion_steps_by_the_sign_and_decays_beside_it() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    weight.grad = torch.tensor([0.5, -0.5, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85]))
    torch.testing.assert_close(optimizer.state[weight]["momentum"], 0.01 * weight.grad)


def test_cutout_hides_a_square_of_the_size_asked_for() -> None:
    operation = Cutout(CutoutOptions(p=1.0, side=0.5, fill=0.0), size=8)
    inside = operation.parameters(torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[8, 8]]))
    corner = operation.parameters(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[8, 8]]))
    assert int((operation.apply(torch.ones(1, 3, 8, 8), inside) == 0).sum()) == 3 * 16
    assert int((operation.apply(torch.ones(1, 3, 8, 8), corner) == 0).sum()) == 3 * 4
    off = Cutout(CutoutOptions(p=0.0), size=8).parameters(torch.rand(4, 3), torch.full((4, 2), 8))
    assert not off["chosen"].any()


def test_arrays_say_which_file_is_wrong(root: Path) -> None:
    np.save(root / "train" / "images.npy", np.zeros((24, 12, 10, 3)))
    with pytest.raises(UserError, match=r"images.npy holds float64 \(24, 12, 10, 3\); save uint8"):
        Arrays(ArraysOptions(root=root))
    np.save(root / "test" / "labels.npy", np.arange(12))
    with pytest.raises(UserError, match=r"test/labels.npy has labels 0 to 11; the classes are 0 to 2"):
        Arrays(ArraysOptions(root=root, split="test"))


def test_arrays_without_labels_are_trained_on_but_not_judged(root: Path) -> None:
    assert Arrays.labeled(ArraysOptions(root=root), "eval") is not None
    (root / "test" / "labels.npy").unlink()
    options = ArraysOptions(root=root, split="test")
    assert Arrays(options).labels is None
    assert Arrays.labeled(options, "eval") is None
