"""SIGReg: how far embeddings are from an isotropic Gaussian, by a test of normality along random directions.

Balestriero & LeCun, *LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics*,
https://arxiv.org/abs/2511.08544, section 4; Epps & Pulley, *A test for normality based on the empirical characteristic
function*, Biometrika 70 (1983).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslcli.distributed import all_reduce_mean, world_size

from .rows import in_full_precision


def sigreg(z: Tensor, directions: Tensor, limit: float = 5.0, points: int = 17) -> Tensor:
    """Returns the statistic of Epps and Pulley against N(0, 1), averaged over the directions and over the views.

    With φ(t) = exp(−t²/2), the characteristic function of N(0, 1), and x the B embeddings of a view along a direction:

        statistic = B · ∫ |mean over the batch of exp(i·t·x) − φ(t)|² φ(t) dt

    by the trapezoidal rule over `points` in [−limit, limit]. It is 1.06 on average for Gaussian embeddings, whatever B
    is, and 0.41·B or more if all are equal. The embeddings are taken as they are, neither centered nor scaled.

    The batch is that of all processes: the mean is reduced with gradient, so that the value on each process is that of
    one process with the joined batch, and so are its gradients once DDP has averaged them.

    Args:
        z: (V, N, D) embeddings of V views, or (N, D) of one, floating; N is the same on every process.
        directions: (D, K) columns of length 1, equal on every process.
        limit: > 0; beyond 5, φ has 6e-7 of its integral.
        points: at least 2. Embeddings that differ by 2π over the distance of two points (10 with 17 in [−5, 5])
            are the same to it.

    Returns:
        0-dim; float32 regardless of autocast, float64 for float64 inputs.

    Raises:
        ValueError: if the shapes do not fit, the limit is not positive, or there are fewer than 2 points.
    """
    if z.ndim not in (2, 3) or 0 in z.shape or directions.ndim != 2 or directions.shape[0] != z.shape[-1]:
        raise ValueError(f"embeddings (V, N, D) and directions (D, K) are needed: {tuple(z.shape)}, {directions.shape}")
    if not limit > 0 or points < 2:
        raise ValueError(f"a limit above 0 and 2 points or more are needed, not {limit} and {points}")
    with torch.autocast(z.device.type, enabled=False):
        z = in_full_precision(z)
        # Both halves of the integral are equal, and at t = 0 nothing is left: t > 0, counted twice.
        step = 2 * limit / (points - 1)
        t = limit - step * torch.arange(points // 2, dtype=z.dtype, device=z.device)  # T
        phi = (-t.square() / 2).exp()
        weight = 2 * step * phi
        weight[0] /= 2
        angle = (z @ directions.detach().to(z.dtype)).unsqueeze(-1) * t  # V×N×K×T
        found = torch.stack((angle.cos().mean(dim=-3), angle.sin().mean(dim=-3)))  # 2×V×K×T
        real, imaginary = all_reduce_mean(found, gradient=True)
        statistic = ((real - phi).square() + imaginary.square()) @ weight  # V×K
        return statistic.mean() * (z.shape[-2] * world_size())


def gaussian_directions(uniform: Tensor, dim: int) -> Tensor:
    """Returns (dim, K) random directions of length 1: normalized Gaussian vectors, by the inverse of the normal
    distribution function.

    Args:
        uniform: (dim·K,) in [0, 1).
        dim: of the embeddings.
    """
    gaussian = torch.special.ndtri(uniform.clamp_min(2.0**-60)).view(dim, -1)
    return gaussian / gaussian.norm(dim=0)
