"""How much of their space features use, without labels: what the collapse watch looks at, and RankMe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(features: Tensor) -> Tensor:
    """Returns √D · the mean over dimensions of the standard deviation of the L2-normalised features.

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

    Between 1 (all on a line, or all alike) and min(N − 1, D). Roy and Vetterli, *The effective rank*, EUSIPCO 2007.

    Args:
        features: (N, D).

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    x = features.double()
    variances = _squared_singular_values(x - x.mean(dim=0))
    share = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return _finite_or_nan(torch.special.entr(share).sum().exp(), x)


def rank_me(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Returns RankMe: exp(−Σ p log p) with p = σ / Σσ + ε, σ the singular values of the features, not centred.

    Garrido et al., *RankMe*, 2210.02885, equation 1.

    Args:
        features: (N, D).
        epsilon: the paper's ε.

    Returns:
        0-dim float64; NaN if a feature is not finite.
    """
    x = features.double()
    sigma = _squared_singular_values(x).sqrt()
    share = sigma / sigma.sum().clamp_min(torch.finfo(torch.float64).tiny) + epsilon
    return _finite_or_nan(torch.special.entr(share).sum().exp(), x)


def _squared_singular_values(x: Tensor) -> Tensor:
    """All min(N, D) of them, from the smaller of the two Gram matrices."""
    x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)  # the solver raises where there is anything else
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def _finite_or_nan(value: Tensor, x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x).all(), value, torch.nan)
