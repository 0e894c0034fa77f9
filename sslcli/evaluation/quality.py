"""How much of their space features use, without labels: what the collapse watch looks at, RankMe, and the alignment and
uniformity of Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere*, https://arxiv.org/abs/2005.10242."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcli.runs.arithmetic import exact_float32

#: Distances held at once: 64 MiB.
BLOCK = 1 << 23


def feature_std(features: Tensor) -> Tensor:
    """Returns √D · the mean over dimensions of the standard deviation of the L2-normalized features.

    1 for features spread evenly over the sphere, 0 for features that are all alike (the monitor of SimSiam's paper,
    2011.10566, section 4.1, times √D).

    Args:
        features: (N, D).

    Returns:
        0-dim float32, never waiting for the device.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """Returns exp(entropy) of the eigenvalues, divided by their sum, of the features' covariance.

    Between 1 (all on a line, or all alike) and min(N − 1, D). The eigenvalues are the squares σ² of the singular values
    of the centered features. Roy and Vetterli's number has σ in their place, and is larger: `roy_vetterli_rank`.

    Args:
        features: (N, D).

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    eigenvalues, x = _eigenvalues(features)
    return _exp_entropy(eigenvalues, 0.0, x)


def roy_vetterli_rank(features: Tensor) -> Tensor:
    """Returns exp(entropy) of the singular values, divided by their sum, of the centered features.

    Roy and Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007, definition 1. Between 1
    and min(N − 1, D).

    Args:
        features: (N, D).

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    eigenvalues, x = _eigenvalues(features)
    # Rounding leaves zeros at about 1e-16 of the largest, whose roots would count.
    noise = eigenvalues.amax() * len(eigenvalues) * torch.finfo(torch.float64).eps
    return _exp_entropy(torch.where(eigenvalues > noise, eigenvalues, 0.0).sqrt(), 0.0, x)


def _eigenvalues(features: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values of the centered features, and the features in float64."""
    x = features.double()
    centered = _finite(x - x.mean(dim=0))
    # Of the two Gram matrices the smaller one has all squared singular values.
    gram = centered.T @ centered if len(x) >= x.shape[1] else centered @ centered.T
    return torch.linalg.eigvalsh(gram).clamp_min(0), x


def rank_me(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Returns RankMe: exp(−Σ p log p) with p = σ / Σσ + ε, σ the singular values of the features, not centered.

    Garrido et al., *RankMe*, 2210.02885, equation 1. From the singular values themselves: the root of an eigenvalue of
    the Gram matrix knows no σ below 1e-8 of the largest.

    Args:
        features: (N, D), as they are: neither centered nor L2-normalized.
        epsilon: the paper's ε.

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    x = features.double()
    return _exp_entropy(torch.linalg.svdvals(_finite(x)), epsilon, x)


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2.0) -> Tensor:
    """Returns the mean of ‖z₁ − z₂‖^α over positive pairs, both L2-normalized here: 0 for views that are all the same.

    Args:
        z1: (N, D), features of one view of each image.
        z2: (N, D), of another view of the same images.
        alpha: the paper's α > 0.

    Returns:
        0-dim float64.
    """
    difference = F.normalize(z1.double(), dim=1) - F.normalize(z2.double(), dim=1)
    return difference.norm(dim=1).pow(alpha).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """Returns log of the mean of exp(−t·‖zᵢ − zⱼ‖²) over all pairs i < j, the features L2-normalized here.

    0 for features that are all alike; about −2t for ones spread evenly over a sphere of many dimensions. Exact, in
    blocks, on the device.

    Args:
        z: (N, D), N at least 2.
        t: the paper's t > 0.

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    unit = F.normalize(z.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=z.device)
    rows = max(1, BLOCK // len(unit))
    with exact_float32(), torch.autocast(z.device.type, enabled=False):
        for start in range(0, len(unit), rows):
            block = unit[start : start + rows]
            # ‖a − b‖² = 2 − 2a·b on the sphere; only columns from the block on, so that each pair is met once.
            kernel = (2 * t * (block @ unit[start:].T - 1)).exp_()
            total += torch.triu(kernel, diagonal=1).sum(dtype=torch.float64)
    return _finite_or_nan(total.log() - math.log(len(unit) * (len(unit) - 1) / 2), unit)


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)  # the solvers raise where there is anything else


def _exp_entropy(values: Tensor, epsilon: float, x: Tensor) -> Tensor:
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + epsilon
    return _finite_or_nan(torch.special.entr(share).sum().exp(), x)


def _finite_or_nan(value: Tensor, x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x).all(), value, torch.nan)
