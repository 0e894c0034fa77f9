"""Maps of features, one vector for each place of a grid: which networks have them, and how they change their size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.contracts.backbone import Backbone, Features
from sslcli.contracts.errors import UserError


def map_width(backbone: Backbone, image_size: int, needs: str) -> int:
    """Returns E, the dimension of a backbone's tokens (N, L, E): it need not be that of the pooled features.

    The network is run once, in `eval()`, on an image of zeros; it stays as it is.

    Args:
        image_size: side in pixels of an image that it takes.
        needs: where this network is in the config, and what needs the map, for the message: `backbone: densecl`.

    Raises:
        UserError: it has none, or not as a grid.
    """
    training, like = backbone.training, next(backbone.parameters())
    image = torch.zeros(1, backbone.spec.channels, image_size, image_size, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        features = backbone.eval()(image)
    backbone.train(training)
    if features.tokens is None or features.grid is None:
        raise UserError(
            f"{needs} needs a map of features, which this network does not have: take a ResNet, a vision transformer "
            "or another one that has"
        )
    return features.tokens.shape[-1]


def map_of(features: Features) -> Tensor:
    """Returns the tokens (N, L, E) of a network that has a map as (N, rows, columns, E)."""
    assert features.tokens is not None and features.grid is not None  # noqa: PT018  # see `map_width`
    count, _, width = features.tokens.shape
    return features.tokens.reshape(count, *features.grid, width)


def resize_map(x: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic", "mean"]) -> Tensor:
    """Returns a map (…, H, W, D) as one of another size, (…, rows, columns, D).

    As two matrix products, because their gradient is deterministic on every device and that of torch's interpolation
    and pooling is not.

    Args:
        x: floating.
        size: rows and columns.
        mode: as `F.interpolate` with `align_corners=False`, without antialiasing; mean: as `F.adaptive_avg_pool2d`.
    """
    if x.shape[-3:-1] == size:
        return x
    with torch.autocast(x.device.type, enabled=False):
        down, across = (_matrix(before, after, x, mode) for before, after in zip(x.shape[-3:-1], size, strict=True))
        return torch.einsum("rh,cw,...hwd->...rcd", down, across, x)


def _matrix(size: int, new_size: int, like: Tensor, mode: str) -> Tensor:
    """The (new_size, size) matrix that resizes along one axis."""
    unit = torch.eye(size, dtype=like.dtype, device=like.device).reshape(1, size, size, 1)
    if mode == "mean":
        return F.adaptive_avg_pool2d(unit, (new_size, 1)).reshape(size, new_size).T
    rows = F.interpolate(unit, size=(new_size, 1), mode=mode, align_corners=False)
    return rows.reshape(size, new_size).T
