"""EqCo's loss: a literal transcription, its equivalence with InfoNCE, and edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses import eqco, info_nce


def embeddings(n: int = 5, k: int = 7, dim: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2 * n + k, dim, generator=generator, dtype=torch.float64).to(dtype)
    return z[:n], z[n : 2 * n], z[2 * n :]


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_eqco(query: Tensor, key: Tensor, negatives: Tensor, temperature: float, alpha: float) -> float:
    total = 0.0
    for q, positive in zip(query.tolist(), key.tolist(), strict=True):
        top = math.exp(cosine(q, positive) / temperature)
        rest = sum(math.exp(cosine(q, k) / temperature) for k in negatives.tolist())
        total += -math.log(top / (top + alpha / len(negatives) * rest))
    return total / len(query)


@pytest.mark.parametrize("alpha", [0.5, 7.0, 65536.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_eqco_is_the_papers_formula(alpha: float, temperature: float) -> None:
    inputs = embeddings()
    expected = literal_eqco(*inputs, temperature, alpha)
    assert eqco(*inputs, temperature, alpha).item() == pytest.approx(expected, rel=1e-12)


def test_eqco_is_info_nce_where_alpha_is_the_number_of_negatives() -> None:
    inputs = embeddings()
    assert torch.equal(eqco(*inputs, 0.2, alpha=7), info_nce(*inputs, 0.2))
    assert abs(eqco(*inputs, 0.2, alpha=8) - info_nce(*inputs, 0.2)) > 1e-3


def test_eqco_with_few_negatives_is_info_nce_with_each_of_them_many_times() -> None:
    q, k, negatives = embeddings()
    torch.testing.assert_close(eqco(q, k, negatives, 0.2, alpha=7 * 12), info_nce(q, k, negatives.repeat(12, 1), 0.2))


def test_eqco_means_65536_negatives_unless_told() -> None:
    inputs = embeddings()
    assert torch.equal(eqco(*inputs, 0.2), eqco(*inputs, 0.2, 65536.0))


def test_eqco_gradient_is_right() -> None:
    inputs = [z.clone().requires_grad_() for z in embeddings(3, 4, 3)]
    assert torch.autograd.gradcheck(lambda *z: eqco(*z, 0.5, 50.0), inputs)


def test_eqco_minds_neither_order_nor_length() -> None:
    q, k, negatives = embeddings()
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(eqco(q[order] * 9, k[order] / 3, negatives.flip(0), 0.2), eqco(q, k, negatives, 0.2))


@pytest.mark.parametrize("count", [1, 4])
def test_eqco_of_equal_embeddings_is_the_logarithm_of_one_and_alpha(count: int) -> None:
    z = torch.ones(count, 3, dtype=torch.float64)
    assert eqco(z, z, torch.ones(7, 3, dtype=torch.float64), 0.1, 100).item() == pytest.approx(math.log(101))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_eqco_computes_half_precision_inputs_in_float32(dtype: torch.dtype) -> None:
    inputs = embeddings(dtype=dtype)
    loss = eqco(*inputs, 0.1)
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = eqco(*inputs, 0.1)
    assert torch.equal(loss, inside)
    assert torch.equal(loss, eqco(*(z.float() for z in inputs), 0.1))


def test_eqco_refuses_what_is_not_positive_and_wrong_shapes() -> None:
    q, k, negatives = embeddings()
    with pytest.raises(ValueError, match="alpha must be positive, not 0"):
        eqco(q, k, negatives, 0.5, 0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        eqco(q, k, negatives, 0.0)
    with pytest.raises(ValueError, match="K of 1 or more"):
        eqco(q, k, negatives[:0], 0.5)
    with pytest.raises(ValueError, match="equal shape"):
        eqco(q, k[:2], negatives, 0.5)
