"""Methods that must collapse, since what prevents it has been taken out; `--plugin` registers them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.method import Batch, ParameterGroup, RunInfo, Step
from sslcli.losses import mean_cosines
from sslcli.methods.byol import BYOL, BYOLOptions
from sslcli.methods.simsiam import SimSiam, SimSiamOptions
from sslcli.modules import each_view, global_and_local


def predicted(method: SimSiam | BYOL, batch: Batch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Returns each view's prediction beside the other's projection, which keeps its gradient, and the features."""
    x, _ = global_and_local(batch, "provoked")
    h = each_view(method.backbone, x)
    z = each_view(method.projector, h)
    p = each_view(method.predictor, z)
    return [(p[0], z[1]), (p[1], z[0])], h[0].detach()


class SimSiamNoPredictor(SimSiam):
    """Without its predictor."""

    plugin_name = "simsiam_no_predictor"

    def __init__(self, backbone: Backbone, options: SimSiamOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.predictor = nn.Identity()

    def parameter_groups(self) -> list[ParameterGroup]:
        return super().parameter_groups()[:1]


class SimSiamNoStop(SimSiam):
    """Without its stop-gradient: both sides move toward each other."""

    plugin_name = "simsiam_no_stop"

    def forward(self, batch: Batch) -> Step:
        pairs, features = predicted(self, batch)
        loss = -torch.stack([F.cosine_similarity(*pair).mean() for pair in pairs]).mean()
        return Step(loss, mean_cosines(pairs), features=features)


class BYOLNoPredictor(BYOL):
    """Without its predictor."""

    plugin_name = "byol_no_predictor"

    def __init__(self, backbone: Backbone, options: BYOLOptions, run: RunInfo) -> None:
        super().__init__(backbone, options, run)
        self.predictor = nn.Identity()


class BYOLNoStop(BYOL):
    """The target is the online network, and gets gradient."""

    plugin_name = "byol_no_stop"

    def forward(self, batch: Batch) -> Step:
        pairs, features = predicted(self, batch)
        loss = 2 * torch.stack([(2 - 2 * F.cosine_similarity(*pair)).mean() for pair in pairs]).mean()
        return Step(loss, mean_cosines(pairs), features=features)
