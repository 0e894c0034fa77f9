"""The supervised contrastive loss and its monitors against literal transcriptions, and edges of classes and views."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from literal import cosine, mean, rows
from torch import Tensor

from sslcli.losses import class_cosines, nt_xent, nt_xent_and_metrics, sup_con

#: Classes of several images, and one (3) that is seen once.
LABELS = torch.tensor([0, 1, 0, 2, 1, 3, 2, 0])


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
    z = rows(8, views, 4)
    expected = literal_sup_con(z, LABELS.tolist(), temperature, 0.07, contrast)
    assert sup_con(z, LABELS, temperature, contrast=contrast).item() == pytest.approx(expected, rel=1e-12)


def test_without_labels_each_image_is_its_own_class() -> None:
    z = rows(8, 3, 4)
    expected = literal_sup_con(z, list(range(8)), 0.2, 0.1)
    assert sup_con(z, None, 0.2, 0.1).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(sup_con(z, None, 0.2, 0.1), sup_con(z, torch.arange(8), 0.2, 0.1))


def test_without_labels_two_views_are_nt_xent() -> None:
    z = rows(8, 2, 4)
    torch.testing.assert_close(sup_con(z, None, 0.3, 0.3), nt_xent(z[:, 0], z[:, 1], 0.3), rtol=1e-12, atol=0)
    metrics, expected = class_cosines(z, None), nt_xent_and_metrics(z[:, 0], z[:, 1], 0.3)[1]
    torch.testing.assert_close(metrics, {name: expected[name] for name in metrics})


def test_the_base_temperature_only_scales_the_loss() -> None:
    z = rows(8, 2, 4)
    torch.testing.assert_close(sup_con(z, LABELS, 0.1, 0.05), 4 * sup_con(z, LABELS, 0.1, 0.2))
    tau = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.equal(sup_con(z, LABELS, tau[0], tau[1]), sup_con(z, LABELS, 0.25, 0.5))
    assert torch.autograd.gradcheck(lambda t: sup_con(z, LABELS, 0.25, t), (tau[1],))


def test_the_order_of_images_and_views_and_the_names_of_classes_do_not_matter() -> None:
    z = rows(8, 3, 4)
    loss = sup_con(z, LABELS, 0.2)
    order = torch.tensor([3, 1, 4, 0, 7, 2, 6, 5])
    torch.testing.assert_close(sup_con(z[order], LABELS[order], 0.2), loss)
    torch.testing.assert_close(sup_con(z.flip(1), LABELS, 0.2), loss)
    torch.testing.assert_close(sup_con(z, 7 - LABELS, 0.2), loss)
    assert abs(sup_con(z, LABELS[order], 0.2) - loss) > 1e-3


def test_one_takes_the_first_view_as_anchor_and_the_order_of_the_others_does_not_matter() -> None:
    z = rows(8, 3, 4)
    loss = sup_con(z, LABELS, 0.2, contrast="one")
    torch.testing.assert_close(sup_con(z[:, [0, 2, 1]], LABELS, 0.2, contrast="one"), loss)
    assert abs(sup_con(z[:, [1, 0, 2]], LABELS, 0.2, contrast="one") - loss) > 1e-3


def test_sup_con_normalizes_its_embeddings() -> None:
    z = rows(8, 2, 4)
    lengths = torch.logspace(-2, 2, 16, dtype=torch.float64).view(8, 2, 1)
    torch.testing.assert_close(sup_con(z * lengths, LABELS, 0.1), sup_con(z, LABELS, 0.1))


def test_a_class_seen_once_contributes_zero_counts_in_the_mean_and_is_never_nan() -> None:
    z, labels = rows(4, 1, 4).requires_grad_(), torch.tensor([0, 0, 1, 2])
    loss = sup_con(z, labels, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(literal_sup_con(z.detach(), labels.tolist(), 0.1, 0.07), rel=1e-12)
    assert torch.isfinite(z.grad).all()
    assert z.grad[2:].abs().sum() > 0  # as negatives of the others they are still pushed away


@pytest.mark.parametrize(("images", "views"), [(1, 1), (4, 1), (1, 2)])
def test_a_batch_without_positives_or_without_negatives_has_loss_zero(images: int, views: int) -> None:
    z = rows(images, views, 4).requires_grad_()
    loss = sup_con(z, torch.arange(images), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_a_batch_of_one_class_attracts_itself() -> None:
    z, same = rows(4, 2, 4), torch.zeros(4, dtype=torch.int64)
    assert sup_con(z, same, 0.5).item() == pytest.approx(literal_sup_con(z, [0] * 4, 0.5, 0.07), rel=1e-12)
    assert sup_con(torch.ones_like(z), same, 0.5) < sup_con(z, same, 0.5)


def test_equal_embeddings_cost_the_logarithm_of_the_candidates() -> None:
    z = torch.ones(8, 2, 3, dtype=torch.float64)
    assert sup_con(z, LABELS, 0.14).item() == pytest.approx(2 * math.log(15))


def test_wrong_inputs_are_refused() -> None:
    z = rows(8, 2, 4)
    with pytest.raises(ValueError, match=r"\(N, V, D\).*not \(8, 4\)"):
        sup_con(z[:, 0], LABELS, 0.1)
    with pytest.raises(ValueError, match=r"at least one image and one view.*not \(0, 2, 4\)"):
        sup_con(z[:0], LABELS[:0], 0.1)
    with pytest.raises(ValueError, match=r"one label for each of 8 images is needed, not \(7,\)"):
        sup_con(z, LABELS[:7], 0.1)
    with pytest.raises(ValueError, match=r"whole numbers, not torch\.float32"):
        sup_con(z, LABELS.float(), 0.1)
    with pytest.raises(ValueError, match=r"^the base temperature must be positive, not -1"):
        sup_con(z, LABELS, 0.1, -1)
    with pytest.raises(ValueError, match="'all' or 'one', not 'two'"):
        sup_con(z, LABELS, 0.1, contrast="two")


@pytest.mark.parametrize("labels", [LABELS, None, torch.zeros(8, dtype=torch.int64)], ids=["labels", "none", "one"])
@pytest.mark.parametrize("views", [1, 3])
def test_the_metrics_are_the_means_over_all_pairs_and_0_without_pairs(labels: Tensor | None, views: int) -> None:
    z = rows(8, views, 4)
    classes = range(8) if labels is None else labels.tolist()
    embeddings = [(c, row) for c, image in zip(classes, z.tolist(), strict=True) for row in image]
    pairs = [(a, b) for i, a in enumerate(embeddings) for k, b in enumerate(embeddings) if i != k]
    positive = [cosine(a[1], b[1]) for a, b in pairs if a[0] == b[0]]
    negative = [cosine(a[1], b[1]) for a, b in pairs if a[0] != b[0]]
    metrics = class_cosines(z, labels)
    assert metrics["pos_cos"].item() == pytest.approx(mean(positive) if positive else 0, rel=1e-12, abs=1e-12)
    assert metrics["neg_cos"].item() == pytest.approx(mean(negative) if negative else 0, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_process_compares_its_own_anchors_with_everyone_s(
    monkeypatch: pytest.MonkeyPatch, contrast: str, labeled: bool
) -> None:
    """The mean of the losses of two processes, the other's rows given, is that of one with the joined batch."""
    z, module = rows(8, 2, 4), sys.modules["sslcli.losses.sup_con"]
    labels, halves = LABELS if labeled else None, (slice(0, 4), slice(4, 8))
    unit = F.normalize(torch.cat([z[half].transpose(0, 1).flatten(0, 1) for half in halves]), dim=1)
    classes = torch.cat([(LABELS if labeled else torch.arange(8))[half].repeat(2) for half in halves])
    monkeypatch.setattr(module, "all_gather", lambda x, gradient=False: unit if x.is_floating_point() else classes)
    losses = []
    for rank, half in enumerate(halves):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module, "world_size", lambda: 2)
        losses.append(sup_con(z[half], None if labels is None else labels[half], 0.2, contrast=contrast).item())
    monkeypatch.undo()
    assert mean(losses) == pytest.approx(sup_con(z, labels, 0.2, contrast=contrast).item(), rel=1e-12)
    assert losses[0] != losses[1]
