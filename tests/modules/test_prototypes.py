"""Prototypes: unit rows at the start and after each step, scores in full precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sslcli.modules.prototypes import Prototypes
from sslcli.modules.roles import parameter_roles


def build() -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(6, 10)


def test_prototypes_are_normalized_before_the_first_forward() -> None:
    torch.testing.assert_close(build().weight.norm(dim=1), torch.ones(10))


def test_normalize_brings_moved_rows_back_to_length_one_in_their_direction() -> None:
    prototypes = build()
    lengths = torch.linspace(0.1, 7, 10).unsqueeze(1)
    before = prototypes.weight.detach().clone()
    with torch.no_grad():
        prototypes.weight.mul_(lengths)
    prototypes.normalize()
    torch.testing.assert_close(prototypes.weight.detach(), before)
    assert prototypes.weight.requires_grad


def test_a_row_of_zeros_stays_and_is_not_nan() -> None:
    prototypes = build()
    with torch.no_grad():
        prototypes.weight[3] = 0
    prototypes.normalize()
    assert torch.equal(prototypes.weight[3], torch.zeros(6))
    assert torch.isfinite(prototypes.weight).all()


def test_scores_are_cosines_without_bias() -> None:
    prototypes, z = build(), F.normalize(torch.randn(4, 6), dim=1)
    assert prototypes.bias is None
    expected = F.cosine_similarity(z.unsqueeze(1), prototypes.weight.unsqueeze(0), dim=2)
    torch.testing.assert_close(prototypes(z), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_float32_whatever_the_autocast(dtype: torch.dtype) -> None:
    prototypes, z = build(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, half = prototypes(z), prototypes(z.to(dtype))
    assert torch.equal(scores, prototypes(z))
    assert half.dtype == torch.float32
    assert torch.equal(half, prototypes(z.to(dtype).float()))


def test_prototypes_are_weights_to_an_optimizer() -> None:
    assert parameter_roles(build()) == {"weight": "weight"}
