"""Ten training steps of every method, in sslcli's own loop, beside a transcription of its authors' code, in float64:
loss, gradients, weights, momentum encoder, queue and center after every step.

Both start from the same weights and see the same views. What sslcli documents to do differently (`docs/methods.md`) is
stated at the case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import authors_contrast as contrast
import authors_lejepa as gaussian
import authors_masked as masked
import authors_targets as targets
import authors_teach as teach
import pytest
import torch
from authors_parts import BATCH, TOTAL, Authors
from authors_run import Case, start, state
from small_options import teacher
from torch import Tensor, nn

from sslcli.config.merge import read_config
from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, DrawKeys, View
from sslcli.losses import gaussian_directions
from sslcli.plugins import find, load
from sslcli.runs.teacher import Teacher
from sslcli.training.state import frozen_state

HEAD: dict[str, Any] = {"hidden_dim": 7, "output_dim": 5}
#: A method is given its authors' learning rates per 256 images, on batches of 8.
SCALED = {"scale_lr": "batch/256"}
WARM = {"name": "cosine", "warmup_epochs": 1}
BY_EPOCH = {"name": "cosine", "per_epoch": True}


def sgd(lr: float) -> dict[str, Any]:
    return {"name": "sgd", "lr": lr, "weight_decay": 1e-4, "exclude": []}


def simclr(layers: int, lr: float, scale: str, base: float, loss: str = "nt_xent") -> Case:
    """The authors' loss is twice ours: with LARS twice the learning rate of vectors, half of the decay."""
    projector = {"layers": layers, "hidden_dim": 6, "output_dim": 5}
    method = {"name": "simclr" if layers == 2 else "simclr_v2", "loss": loss, "temperature": 0.5}
    plain = partial(contrast.SimCLR, layers, 0.5, base, 0.02)
    return Case(
        plain if loss == "nt_xent" else partial(contrast.DCL, loss == "dclw", 0.5, base, 0.02),
        {**method, "projector": projector},
        {"name": "lars_simclr", "lr": lr, "lr_excluded": 2 * lr, "weight_decay": 0.01, "scale_lr": scale},
        WARM, loss=0.5, gradient=0.5,
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))


def normed(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5))


def queue_case(name: str, authors: Callable[[], Authors], schedule: dict[str, Any], **options: Any) -> Case:
    method = {"name": name, "queue_size": 16, "momentum": 0.9, "projector": {"output_dim": 5}, **options}
    return Case(authors, method, sgd(0.3), schedule)


def workbench(loss: str, negatives: str, *, both: bool, heads: bool = False, **more: Any) -> Case:
    options = {"loss": loss, "negatives": negatives, "batch_negatives": "other_view", "both_views_as_queries": both}
    if heads:  # untitled-ai's MLP: every linear layer has a bias
        options |= {
            "projector": {**HEAD, "norm": "batch"},
            "predictor": {"layers": 2, "hidden_dim": 7, "norm": "batch"},
        }
    else:
        options |= {"projector": {"output_dim": 5}}
    flags = {"loss": loss, "negatives": negatives, "both": both, "alpha": more.get("eqco_alpha")}
    return Case(
        lambda: contrast.Workbench(
            normed(6) if heads else mlp(), normed(5) if heads else nn.Identity(), 0.1, 2.0, **flags
        ),
        {"name": "moco", "queue_size": 16, "momentum": 0.9, "loss_factor": 2.0, **options, **more},
        sgd(0.1), BY_EPOCH,
    )  # fmt: skip


def moco_v3(vit: bool) -> Case:
    optimizer = {"name": "adamw", "lr": 0.32, "weight_decay": 0.1, "exclude": []} if vit else {
        "name": "lars", "lr": 32.0, "weight_decay": 0.01
    }  # fmt: skip
    heads = {"projector": {**HEAD, "layers": 3 if vit else 2}, "predictor": {"hidden_dim": 7, "last_norm": vit}}
    return Case(
        lambda: contrast.MoCoV3(optimizer["lr"] * BATCH / 256, optimizer["weight_decay"], vit),
        {"name": "moco_v3", "momentum": 0.9, "temperature": 0.2 if vit else 1.0, **heads},
        {**optimizer, **SCALED}, WARM,
    )  # fmt: skip


def dino(*, fixed: bool, clip: float) -> Case:
    head = {"hidden_dim": 7, "bottleneck_dim": 5, "prototypes": 9, "norm_last_layer": fixed}
    temperatures = {"teacher_temperature_start": 0.03125, "teacher_temperature": 0.0625}
    return Case(
        lambda: targets.DINO(0.01, fixed, clip),
        {"name": "dino", "momentum": 0.9, "head": head, "teacher_temperature_warmup_epochs": 2, **temperatures},
        {"name": "adamw", "lr": 0.32, "weight_decay": 0.04, "final_weight_decay": 0.4, "exclude": ["norm", "bias"],
         **SCALED},
        {**WARM, "warmup": "linspace", "final_lr": 1e-6},
        {"clip": {"norm": clip, "mode": "per_parameter"}}, sides=(8, 8, 5, 5),
    )  # fmt: skip


def barlow(processes: int = 1) -> Case:
    """On several processes the authors' gradient is that of the joined batch over their number, which `scale` gives."""
    return Case(
        lambda: targets.BarlowTwins(1.0, 0.01, processes),
        {"name": "barlow_twins", "projector": HEAD, "scale": 1 / processes},
        {"name": "lars", "lr": 32.0, "lr_excluded": 0.768, "weight_decay": 0.01, **SCALED},
        {**WARM, "final": 0.001}, loss=1 / processes,
    )  # fmt: skip


def directions(t: int) -> Tensor:
    """LeJEPA's 6 directions of 5 dimensions in step t: of nothing but the seed and the step."""
    batch = Batch([View(torch.empty(0))], None, torch.empty(0), {}, DrawKeys(seed=0, step=t))
    return gaussian_directions(batch.shared_uniform(30), 5).double()


def densecl(grid: int | None = None) -> Case:
    return Case(
        lambda: teach.DenseCL(5, 0.2, 0.9, 0.3, 0.3, grid),
        {"name": "densecl", "queue_size": 16, "momentum": 0.9, "dense_weight": 0.3, "num_grid": grid,
         "projector": {"output_dim": 5}},
        sgd(0.3), BY_EPOCH,
    )  # fmt: skip


def given_teacher() -> nn.Module:
    """The teacher of the test runs, for the views of `shapes`."""
    channels = load("datasets", "shapes").Options.parse({"count": 1, "size": 16})
    info: DataInfo = load("datasets", "shapes")(channels).info
    return Teacher(teacher(), info, 16).double()


CASES: dict[str, Case] = {
    "simclr": simclr(2, 32.0, "batch/256", 1.0),
    "simclr dcl": simclr(2, 32.0, "batch/256", 1.0, "dcl"),
    "simclr dclw": simclr(2, 32.0, "batch/256", 1.0, "dclw"),
    "simclr_v2": simclr(3, 0.25, "sqrt", 0.25 * math.sqrt(BATCH)),
    "supcon": Case(
        lambda: contrast.SupCon(0.1, 0.05),
        {"name": "supcon", "temperature": 0.1, "projector": {"output_dim": 5}},
        sgd(0.05), {"name": "step", "milestones": [0.5], "factor": 0.1},
    ),
    "simsiam": Case(
        lambda: targets.SimSiam(0.2),
        {"name": "simsiam", "projector": HEAD, "predictor": {"hidden_dim": 4}},
        sgd(0.2), BY_EPOCH,
    ),
    "byol": Case(
        lambda: targets.BYOL(1.0, 0.01),
        {"name": "byol", "momentum": 0.9, "projector": HEAD, "predictor": {"hidden_dim": 7}},
        {"name": "lars", "lr": 32.0, "weight_decay": 0.01, **SCALED}, WARM,
    ),
    "nnclr": Case(
        lambda: contrast.NNCLR(0.1, 1.0, 0.01),
        {"name": "nnclr", "queue_size": 24, "projector": HEAD, "predictor": {"hidden_dim": 7}},
        {"name": "lars", "lr": 32.0, "weight_decay": 0.01, **SCALED}, WARM,
        still=("projector.7.bias",),  # the predictor's batch norm cancels it, and neighbors have no gradient
    ),
    "moco_v1": queue_case(
        "moco_v1", lambda: contrast.MoCoV1(nn.Linear(6, 5), 0.07, 0.9, 0.3),
        {"name": "step", "milestones": [0.6, 0.8], "factor": 0.1},
    ),
    "moco_v2": queue_case("moco_v2", lambda: contrast.MoCo(mlp(), 0.2, 0.9, 0.3), BY_EPOCH),
    "eqco": queue_case("eqco", lambda: contrast.MoCo(mlp(), 0.2, 0.9, 0.3, 65536.0), BY_EPOCH),
    "moco_v3": moco_v3(vit=False),
    "moco_v3 vit": moco_v3(vit=True),
    "moco ce": workbench("ce", "queue", both=True),
    "moco bce": workbench("bce", "queue", both=False),
    "moco bce on the batch": workbench("bce", "batch", both=True),
    "moco eqco on the batch": workbench("ce", "batch", both=True, eqco_alpha=1000.0),
    "moco ip": workbench("ip", "none", both=True, heads=True),
    "moco ip with a queue": workbench("ip", "queue", both=False),
    "moco ip on the batch": workbench("ip", "batch", both=True),
    "swav": Case(
        lambda: targets.SwAV(2.0),
        {"name": "swav", "projector": HEAD, "prototypes": 9, "frozen_steps": 2, "queue_size": 20,
         "queue_start_epoch": 1},
        {"name": "larc", "lr": 64.0, "weight_decay": 0.01, "clip": False, "exclude": [], **SCALED},
        {**WARM, "warmup": "linspace", "warmup_start_lr": 0.1, "final": 0.001}, sides=(8, 8, 5, 5),
    ),
    "dino": dino(fixed=True, clip=3.0),
    "dino with lengths and much clipping": dino(fixed=False, clip=0.01),
    "mae": Case(
        lambda: masked.MAE(4, 0.01),
        {"name": "mae", "decoder": {"dim": 8, "depth": 1, "heads": 2}},
        {"name": "adamw", "lr": 0.32, "weight_decay": 0.05, "betas": [0.9, 0.95], "exclude": ["norm", "bias"],
         **SCALED},
        WARM, sides=(16,), vit=True,
    ),
    "ijepa": Case(
        lambda: masked.IJEPA(5, 2, 0.25, 6, 0.01),
        {"name": "ijepa", "target_blocks": 2, "target_scale": [0.25, 0.25], "target_ratio": [1.0, 1.0],
         "predictor": {"dim": 8, "depth": 1, "heads": 2}},
        {"name": "adamw", "lr": 0.32, "weight_decay": 0.04, "final_weight_decay": 0.4, "exclude": ["norm", "bias"],
         **SCALED},
        {**WARM, "warmup_start": 0.2, "final": 0.001}, sides=(20,), vit=True,
    ),
    "barlow_twins": barlow(),
    "barlow_twins on two processes": barlow(2),
    "lejepa": Case(
        lambda: gaussian.LeJEPA(0.02, 0.01, 0.05, directions),
        {"name": "lejepa", "lambda_": 0.02, "directions": 6, "integration_limit": 3.0, "integration_points": 33,
         "projector": HEAD},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.05, "exclude": []},
        {**WARM, "warmup_start": 0.01, "final": 0.001}, sides=(8, 8, 8),
    ),
    "vicreg": Case(
        lambda: targets.VICReg(1.0, 0.01), {"name": "vicreg", "projector": HEAD},
        {"name": "lars", "lr": 32.0, "weight_decay": 0.01, **SCALED}, {**WARM, "final": 0.001},
    ),
    "densecl": densecl(),
    "densecl on a grid": densecl(2),
    "distillation": Case(
        lambda: teach.SEED(given_teacher(), 32, 0.2, 0.05, 0.3),
        {"name": "distillation", "teacher": teacher(), "queue_size": 16, "temperature": 0.2,
         "teacher_temperature": 0.05},
        sgd(0.3), BY_EPOCH, {"clip": None}, sides=(8,),
    ),
}  # fmt: skip


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_the_authors(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "uniform", lambda self, count, stream=0: masked.drawn(self.keys.step, count))
    case = CASES[name]
    loop, authors = start(case, tmp_path), case.authors()
    authors.load(state(loop))
    parameters = {each for each, _ in loop.method.named_parameters()} - frozen_state(loop.method).keys()
    first = state(loop)
    for t in range(TOTAL):
        before = state(loop)
        loop.step()
        loss = authors.step(loop.images, loop.labels, t)
        assert loop.loss == pytest.approx(case.loss * loss, rel=1e-9), t
        for each, gradient in loop.gradients.items():
            assert_equal(gradient, case.gradient * authors.gradients[each], f"gradient of {each} in step {t}")
        after, expected = state(loop), authors.found()
        assert parameters <= expected.keys()
        for each in after.keys() & expected.keys():
            early = each in parameters and each.startswith(authors.early) and authors.early
            assert_equal((before if early else after)[each], expected[each], f"{each} after step {t}")
    moved = {each for each in parameters if not torch.allclose(after[each], first[each], rtol=0, atol=1e-6)}
    assert moved == parameters - set(case.still)


def test_every_method_is_there() -> None:
    methods = {plugin.name for plugin in find("methods") if plugin.package == "sslcli"}
    assert {case.method["name"] for case in CASES.values()} == methods


def test_the_config_of_simclr_makes_its_authors_steps() -> None:
    """Their lr 0.3 and weight decay 1e-6 on twice our loss, as the case `simclr` above has them."""
    path = Path(__file__).parents[3] / "examples" / "configs" / "imagenet" / "simclr.yaml"
    optimizer = read_config(path, []).data["optimizer"]
    options = load("optimizers", optimizer.pop("name")).Options.parse(optimizer)
    assert (options.lr, options.lr_excluded, options.weight_decay) == (0.3, 2 * 0.3, 1e-6 / 2)
