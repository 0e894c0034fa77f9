"""What the workbench's tests share: settings to look at, a tiny backbone, steps, and what the parts of a method say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import Pooled
from torch import Tensor

from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, View
from sslcli.methods.byol import BYOL
from sslcli.methods.moco import MoCo
from sslcli.methods.moco_v2 import MoCoV2
from sslcli.methods.simclr import SimCLR
from sslcli.methods.vicreg import VICReg

COUNT, DIM, TOTAL = 8, 5, 6
PRESETS = {"none": None, "moco_v2": MoCoV2, "simclr": SimCLR, "byol": BYOL, "vicreg": VICReg}
EACH_PRESET = pytest.mark.parametrize("preset", PRESETS)
EACH_METHOD = pytest.mark.parametrize(("preset", "cls"), [(n, c) for n, c in PRESETS.items() if c is not None])
#: Further places on the way from one preset to another.
STEPS_BETWEEN: dict[str, dict[str, Any]] = {
    "both directions": {"both_views_as_queries": True},
    "binary": {"loss": "bce", "loss_factor": 30.0},
    "binary, positives alone": {"loss": "bce", "negatives": "none"},
    "inner products with negatives": {"loss": "ip", "loss_factor": 0.1},
    "batch": {"negatives": "batch"},
    "batch, the other view, no sphere": {"negatives": "batch", "batch_negatives": "other_view", "unit_sphere": False},
    "eqco on the batch": {"negatives": "batch", "eqco_alpha": 1000.0, "gather_keys": False},
    "a queue of online keys": {"momentum_encoder": False},
    "keys with gradient": {"momentum_encoder": False, "stop_gradient": False, "views_together": True},
    "simsiam's": {
        "loss": "ip", "negatives": "none", "momentum_encoder": False, "both_views_as_queries": True,
        "predictor": {"layers": 2, "hidden_dim": 8, "norm": "batch"},
    },
    "vicreg with a predictor, both together": {
        "loss": "vic", "negatives": "none", "both_views_as_queries": True, "views_together": True,
        "predictor": {"layers": 1},
    },
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {**{name: {"preset": name} for name in PRESETS}, **STEPS_BETWEEN}
EACH = pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)


def small(**knobs: Any) -> dict[str, Any]:
    """The knobs, with small heads and a queue whose length is no multiple of the batch."""
    heads = {"projector": {"hidden_dim": 8, "output_dim": DIM}, "predictor": {"hidden_dim": 8}}
    heads = {name: {**head, **knobs.get(name, {})} for name, head in heads.items()}
    return {"queue_size": 19, **knobs, **heads}


def make(cls: type[Method], values: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    data = DataInfo("random", 3, (2, 2), (0.5,) * 3, (0.2,) * 3)
    return cls(Pooled(), cls.Options.parse(values), RunInfo(TOTAL, 3, 2, COUNT, 1, data))


def build(seed: int = 0, **knobs: Any) -> MoCo:
    return make(MoCo, small(**knobs), seed)


def batch(seed: int = 1, count: int = COUNT, views: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = [View(torch.randn(count, 3, 2, 2, generator=generator)) for _ in range(views)]
    return Batch(images, None, torch.arange(count), {})


def train(method: Method, first: int, last: int) -> list[float]:
    """Plain gradient descent; optimizer steps `first` to `last` − 1, each with its own batch."""
    losses = []
    for step in range(first, last):
        out = method(batch(step))
        method.zero_grad()
        out.loss.backward()
        with torch.no_grad():
            for group in method.parameter_groups():
                for parameter in group.parameters.values():
                    parameter -= 0.1 * parameter.grad
            method.after_step([out.carry], Progress(step + 1, TOTAL, 3))
        losses.append(out.loss.item())
    return losses


def embeddings(method: MoCo, data: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Both views' online projections, predictions of them, and momentum projections, one view at a time."""
    images = [view.image for view in data.views]
    z = [method.projector(method.backbone(x).pooled) for x in images]
    p = [method.predictor(each) for each in z]
    k = [method.momentum_encoder(x) for x in images] if method.momentum_encoder is not None else []
    return z, p, k
