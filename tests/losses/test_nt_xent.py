"""NT-Xent against a literal transcription of the paper's equation, and its properties on one and two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslcli.losses.nt_xent import nt_xent, pair_cosines, twin_logits, twins_found


def pair(images: int = 5, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, images, dim, generator=generator, dtype=torch.float64).to(dtype)
    return z[0], z[1]


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, in its numbering: images 2k−1 and 2k (here 2k and 2k+1) are a positive pair."""
    z = [row for both in zip(z1.tolist(), z2.tolist(), strict=True) for row in both]
    total = 0.0
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        denominator = sum(math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        total += -math.log(math.exp(cosine(z[i], z[j]) / temperature) / denominator)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_the_papers_equation(temperature: float) -> None:
    z1, z2 = pair()
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(literal_nt_xent(z1, z2, temperature), rel=1e-12)


def test_nt_xent_gradient_is_right() -> None:
    z1, z2 = (z.requires_grad_() for z in pair(3, 3))
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nt_xent, (z1, z2, temperature))


def test_a_temperature_tensor_and_a_number_give_the_same() -> None:
    z1, z2 = pair()
    assert torch.equal(nt_xent(z1, z2, 0.25), nt_xent(z1, z2, torch.tensor(0.25)))


def test_the_order_of_the_images_and_of_the_views_does_not_matter() -> None:
    z1, z2 = pair()
    order = torch.tensor([3, 1, 4, 0, 2])
    loss = nt_xent(z1, z2, 0.5)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.5), loss)
    torch.testing.assert_close(nt_xent(z2, z1, 0.5), loss)


def test_the_twins_must_stand_in_the_same_row() -> None:
    z1, z2 = pair()
    assert abs(nt_xent(z1, z2.roll(1, 0), 0.5) - nt_xent(z1, z2, 0.5)) > 1e-3


def test_the_length_of_the_embeddings_does_not_matter() -> None:
    z1, z2 = pair()
    lengths = torch.tensor([[0.01], [3.0], [1.0], [50.0], [7.0]], dtype=torch.float64)
    torch.testing.assert_close(nt_xent(z1 * lengths, z2 / lengths, 0.5), nt_xent(z1, z2, 0.5))


def test_a_batch_of_one_image_has_loss_zero_and_no_gradient() -> None:
    z1, z2 = (z.requires_grad_() for z in pair(1))
    loss = nt_xent(z1, z2, 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z1.grad, torch.zeros_like(z1))


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    z = torch.ones(4, 3, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = pair(dtype=dtype)
    loss = nt_xent(z1, z2, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z1.float(), z2.float(), 0.1), rtol=0, atol=0)


def test_autocast_does_not_reach_the_loss() -> None:
    z1, z2 = pair(64, 32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, cosines = nt_xent(z1, z2, 0.1), pair_cosines(z1, z2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, nt_xent(z1, z2, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(cosines, pair_cosines(z1, z2), strict=True))


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    z1, z2 = pair()
    with pytest.raises(ValueError, match=r"equal shape.*\(5, 4\) and \(4, 4\)"):
        nt_xent(z1, z2[:4], 0.5)
    with pytest.raises(ValueError, match="positive, not 0"):
        nt_xent(z1, z2, 0)


def test_pair_cosines_are_the_means_over_all_pairs() -> None:
    z1, z2 = pair()
    positive = [cosine(a, b) for a, b in zip(z1.tolist(), z2.tolist(), strict=True)]
    z, image = [*z1.tolist(), *z2.tolist()], [*range(5), *range(5)]
    negative = [cosine(z[i], z[k]) for i in range(10) for k in range(10) if image[i] != image[k]]
    pos_cos, neg_cos = pair_cosines(z1.requires_grad_(), z2)
    assert pos_cos.item() == pytest.approx(sum(positive) / len(positive), rel=1e-12)
    assert neg_cos.item() == pytest.approx(sum(negative) / len(negative), rel=1e-12)
    assert not pos_cos.requires_grad
    assert not neg_cos.requires_grad


def test_pair_cosines_of_one_image_have_a_negative_mean_of_zero() -> None:
    assert pair_cosines(*pair(1))[1].item() == 0


def test_twins_are_found_among_all_other_embeddings() -> None:
    z1, z2 = pair(9)
    rows = torch.cat((z1, 0.8 * z1 + z2)).tolist()  # some twins are near, some are not
    top1 = top5 = 0
    for i, anchor in enumerate(rows):
        twin = cosine(anchor, rows[(i + 9) % 18])
        before = sum(cosine(anchor, rows[k]) > twin for k in range(18) if k not in (i, (i + 9) % 18))
        top1, top5 = top1 + (before < 1), top5 + (before < 5)
    found = twins_found(*twin_logits(z1, 0.8 * z1 + z2, 0.5))
    assert 0 < top1 < top5 < 18  # else it would show nothing
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"contrast_top1": top1 / 18, "contrast_top5": top5 / 18}
    )


def test_no_twin_is_found_where_all_embeddings_are_equal() -> None:
    found = twins_found(*twin_logits(torch.ones(8, 3), torch.ones(8, 3), 0.5))
    assert found["contrast_top1"].item() == found["contrast_top5"].item() == 0


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_compares_its_own_rows_with_everyone_s(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The loss of one of three processes, the others' rows given: the offset of labels and of the masked diagonal."""
    z1, z2 = pair(6)
    module = __import__("sys").modules["sslcli.losses.nt_xent"]
    blocks = [torch.cat((z1[2 * r : 2 * r + 2], z2[2 * r : 2 * r + 2])) for r in range(3)]
    unit = torch.nn.functional.normalize(torch.cat(blocks), dim=1)
    monkeypatch.setattr(module, "all_gather", lambda x, gradient: unit)
    monkeypatch.setattr(module, "rank", lambda: rank)
    own = slice(2 * rank, 2 * rank + 2)
    loss = nt_xent(z1[own], z2[own], 0.5).item()

    total = 0.0
    rows = unit.tolist()
    for i in range(4 * rank, 4 * rank + 4):
        twin = 4 * rank + (i - 4 * rank + 2) % 4
        denominator = sum(math.exp(cosine(rows[i], rows[k]) / 0.5) for k in range(12) if k != i)
        total += -math.log(math.exp(cosine(rows[i], rows[twin]) / 0.5) / denominator)
    assert loss == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_loss_on_cuda_never_waits_for_the_device() -> None:
    z1, z2 = (z.cuda().requires_grad_() for z in pair(64, 32, dtype=torch.float32))
    temperature = torch.tensor(0.5, device="cuda")
    nt_xent(z1, z2, temperature).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = nt_xent(z1, z2, temperature)
        loss.backward()
        pair_cosines(z1, z2)
        twins_found(*twin_logits(z1, z2, temperature))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), nt_xent(z1.cpu(), z2.cpu(), 0.5), rtol=1e-4, atol=1e-5)
