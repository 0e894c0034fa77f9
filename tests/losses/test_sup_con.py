"""The supervised contrastive loss against a literal transcription of the paper's equation, its edges, its monitors."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from sslcli.losses import nt_xent, pair_cosines
from sslcli.losses.sup_con import sup_con, view_cosines

#: Classes of several images, and one (3) that is seen once.
LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 2, 0])


def embeddings(images: int = 8, views: int = 2, dim: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, views, dim, generator=generator, dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_sup_con(
    z: Tensor, labels: list[int], temperature: float, base_temperature: float, contrast: str = "all"
) -> float:
    """L_out of the paper's equation 2, the mean over the anchors, times the authors' τ/τ₀."""
    everyone = [(n, v) for n in range(z.shape[0]) for v in range(z.shape[1])]
    row = {(n, v): z[n, v].tolist() for n, v in everyone}
    anchors = [i for i in everyone if contrast == "all" or i[1] == 0]
    total = 0.0
    for i in anchors:
        positives = [p for p in everyone if p != i and labels[p[0]] == labels[i[0]]]
        denominator = sum(math.exp(cosine(row[i], row[a]) / temperature) for a in everyone if a != i)
        for p in positives:
            probability = math.exp(cosine(row[i], row[p]) / temperature) / denominator
            total += -math.log(probability) / len(positives)
    return temperature / base_temperature * total / len(anchors)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_sup_con_is_the_papers_equation(views: int, contrast: str, temperature: float) -> None:
    z = embeddings(views=views)
    expected = literal_sup_con(z, LABELS.tolist(), temperature, 0.07, contrast)
    assert sup_con(z, LABELS, temperature, contrast=contrast).item() == pytest.approx(expected, rel=1e-12)


def test_without_labels_each_image_is_its_own_class() -> None:
    z = embeddings(views=3)
    expected = literal_sup_con(z, list(range(8)), 0.2, 0.1)
    assert sup_con(z, None, 0.2, 0.1).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(sup_con(z, None, 0.2, 0.1), sup_con(z, torch.arange(8), 0.2, 0.1))


def test_without_labels_two_views_are_nt_xent() -> None:
    z = embeddings()
    torch.testing.assert_close(sup_con(z, None, 0.3, 0.3), nt_xent(z[:, 0], z[:, 1], 0.3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("labels", [LABELS[2:7], None], ids=["labels", "no labels"])
def test_sup_con_gradient_is_right(contrast: str, labels: Tensor | None) -> None:
    z = embeddings(5, 2, 3).requires_grad_()
    temperatures = torch.tensor([0.5, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: sup_con(z, labels, t[0], t[1], contrast), (z, temperatures))


def test_a_temperature_tensor_and_a_number_give_the_same() -> None:
    z = embeddings().float()
    loss = sup_con(z, LABELS, torch.tensor(0.25, dtype=torch.float64), torch.tensor(0.5))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sup_con(z, LABELS, 0.25, 0.5))


def test_the_base_temperature_scales_the_loss_alone() -> None:
    z = embeddings()
    torch.testing.assert_close(sup_con(z, LABELS, 0.1, 0.05), 4 * sup_con(z, LABELS, 0.1, 0.2))
    torch.testing.assert_close(sup_con(z, LABELS, 0.1), sup_con(z, LABELS, 0.1, 0.07))


def test_the_order_of_images_and_views_and_the_names_of_classes_do_not_matter() -> None:
    z = embeddings(views=3)
    loss = sup_con(z, LABELS, 0.2)
    order = torch.tensor([3, 1, 4, 0, 7, 2, 6, 5])
    torch.testing.assert_close(sup_con(z[order], LABELS[order], 0.2), loss)
    torch.testing.assert_close(sup_con(z.flip(1), LABELS, 0.2), loss)
    torch.testing.assert_close(sup_con(z, 7 - LABELS, 0.2), loss)
    assert abs(sup_con(z, LABELS[order], 0.2) - loss) > 1e-3


def test_one_takes_the_first_view_as_anchor_and_any_other_order_of_the_rest_gives_the_same() -> None:
    z = embeddings(views=3)
    loss = sup_con(z, LABELS, 0.2, contrast="one")
    torch.testing.assert_close(sup_con(z[:, [0, 2, 1]], LABELS, 0.2, contrast="one"), loss)
    assert abs(sup_con(z[:, [1, 0, 2]], LABELS, 0.2, contrast="one") - loss) > 1e-3


def test_sup_con_normalizes_its_embeddings() -> None:
    z = embeddings()
    lengths = torch.logspace(-2, 2, 16, dtype=torch.float64).view(8, 2, 1)
    torch.testing.assert_close(sup_con(z * lengths, LABELS, 0.1), sup_con(z, LABELS, 0.1))


def test_a_class_seen_once_contributes_zero_counts_in_the_mean_and_is_never_nan() -> None:
    z = embeddings(4, views=1)
    labels = torch.tensor([0, 0, 1, 2])
    z.requires_grad_()
    loss = sup_con(z, labels, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(literal_sup_con(z.detach(), labels.tolist(), 0.1, 0.07), rel=1e-12)
    assert torch.isfinite(z.grad).all()
    assert z.grad[2:].abs().sum() > 0  # as negatives of the others they are still pushed away


def test_a_batch_without_any_positive_has_loss_zero_and_no_gradient() -> None:
    for images in (1, 4):
        z = embeddings(images, views=1).requires_grad_()
        loss = sup_con(z, torch.arange(images), 0.1)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(z.grad, torch.zeros_like(z))


def test_one_image_in_two_views_has_loss_zero() -> None:
    assert sup_con(embeddings(1), torch.tensor([3]), 0.1).item() == 0


def test_a_batch_of_one_class_is_pulled_together() -> None:
    z = embeddings(4)
    same = torch.zeros(4, dtype=torch.int64)
    assert sup_con(z, same, 0.5).item() == pytest.approx(literal_sup_con(z, [0] * 4, 0.5, 0.07), rel=1e-12)
    assert sup_con(torch.ones_like(z), same, 0.5) < sup_con(z, same, 0.5)


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    z = torch.ones(8, 2, 3, dtype=torch.float64)
    assert sup_con(z, LABELS, 0.14).item() == pytest.approx(2 * math.log(15))


def test_an_embedding_of_zeros_has_a_finite_gradient() -> None:
    z = embeddings()
    z[0, 0] = 0
    z.requires_grad_()
    sup_con(z, LABELS, 0.1).backward()
    assert torch.isfinite(z.grad).all()


def test_a_very_low_temperature_does_not_overflow() -> None:
    z = embeddings().float().requires_grad_()
    loss = sup_con(z, LABELS, 1e-3)
    loss.backward()
    torch.testing.assert_close(loss, sup_con(z.detach().double(), LABELS, 1e-3).float(), rtol=1e-4, atol=0)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    z = embeddings().to(dtype)
    loss = sup_con(z, LABELS, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sup_con(z.float(), LABELS, 0.1))


def test_autocast_does_not_reach_the_loss() -> None:
    z = embeddings(8, dim=64).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, cosines = sup_con(z, LABELS, 0.1), view_cosines(z, LABELS)
    assert torch.equal(inside, sup_con(z, LABELS, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(cosines, view_cosines(z, LABELS), strict=True))


def test_what_it_cannot_work_with_is_refused() -> None:
    z = embeddings()
    with pytest.raises(ValueError, match=r"\(N, V, D\).*not \(8, 4\)"):
        sup_con(z[:, 0], LABELS, 0.1)
    with pytest.raises(ValueError, match=r"at least one image and one view.*not \(0, 2, 4\)"):
        sup_con(z[:0], LABELS[:0], 0.1)
    with pytest.raises(ValueError, match=r"one label for each of 8 images is needed, not \(7,\)"):
        sup_con(z, LABELS[:7], 0.1)
    with pytest.raises(ValueError, match=r"whole numbers, not torch\.float32"):
        sup_con(z, LABELS.float(), 0.1)
    with pytest.raises(ValueError, match=r"^the temperature must be positive, not 0"):
        sup_con(z, LABELS, 0)
    with pytest.raises(ValueError, match=r"^the base temperature must be positive, not -1"):
        sup_con(z, LABELS, 0.1, -1)
    with pytest.raises(ValueError, match="'all' or 'one', not 'two'"):
        sup_con(z, LABELS, 0.1, contrast="two")


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@pytest.mark.parametrize("views", [1, 3])
def test_view_cosines_are_the_means_over_all_pairs(labels: Tensor | None, views: int) -> None:
    z = embeddings(views=views)
    classes = range(8) if labels is None else labels.tolist()
    rows = [(c, row) for c, image in zip(classes, z.tolist(), strict=True) for row in image]
    pairs = [(a, b) for i, a in enumerate(rows) for k, b in enumerate(rows) if i != k]
    positive = [cosine(a[1], b[1]) for a, b in pairs if a[0] == b[0]]
    negative = [cosine(a[1], b[1]) for a, b in pairs if a[0] != b[0]]
    pos_cos, neg_cos = view_cosines(z.requires_grad_(), labels)
    # Nothing to compare (one view of images that are alike in nothing) is told as 0.
    assert pos_cos.item() == pytest.approx(sum(positive) / max(len(positive), 1), rel=1e-12, abs=1e-12)
    assert neg_cos.item() == pytest.approx(sum(negative) / len(negative), rel=1e-12)
    assert not pos_cos.requires_grad
    assert not neg_cos.requires_grad


def test_view_cosines_of_two_views_are_pair_cosines() -> None:
    z = embeddings()
    torch.testing.assert_close(view_cosines(z), pair_cosines(z[:, 0], z[:, 1]))


def test_view_cosines_without_a_negative_pair_are_zero() -> None:
    z = embeddings(3).float()
    assert view_cosines(z, torch.zeros(3, dtype=torch.int64))[1].item() == 0
    assert view_cosines(z[:1])[1].item() == 0
    assert view_cosines(z[:, :1])[0].item() == 0


@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_process_compares_its_own_anchors_with_everyone_s(
    monkeypatch: pytest.MonkeyPatch, contrast: str, labeled: bool
) -> None:
    """The mean of what two of two processes say, the other's rows given, is what one says of the joined batch."""
    z, module = embeddings(), sys.modules["sslcli.losses.sup_con"]
    labels = LABELS if labeled else None
    halves = (slice(0, 4), slice(4, 8))
    unit = torch.nn.functional.normalize(torch.cat([z[half].transpose(0, 1).flatten(0, 1) for half in halves]), dim=1)
    classes = torch.cat([LABELS[half].repeat(2) for half in halves])
    monkeypatch.setattr(module, "all_gather", lambda x, gradient=False: unit if x.is_floating_point() else classes)
    losses = []
    for place, half in enumerate(halves):
        monkeypatch.setattr(module, "rank", lambda place=place: place)
        losses.append(sup_con(z[half], None if labels is None else labels[half], 0.2, contrast=contrast).item())
    monkeypatch.undo()
    assert sum(losses) / 2 == pytest.approx(sup_con(z, labels, 0.2, contrast=contrast).item(), rel=1e-12)
    assert losses[0] != losses[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("contrast", ["all", "one"])
def test_the_loss_on_cuda_never_waits_for_the_device(contrast: str) -> None:
    z, labels = embeddings().float().cuda().requires_grad_(), LABELS.cuda()
    sup_con(z, labels, 0.1, contrast=contrast).backward()
    view_cosines(z, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = sup_con(z, labels, 0.1, contrast=contrast)
        loss.backward()
        sup_con(z, None, torch.full((), 0.1, device="cuda"), contrast=contrast)
        view_cosines(z, labels)
        view_cosines(z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), sup_con(z.cpu(), LABELS, 0.1, contrast=contrast), rtol=1e-4, atol=1e-5)
