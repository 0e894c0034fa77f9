"""What holds for every loss: gradients, precision, order and length of embeddings, temperatures, errors, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from literal import rows
from torch import Tensor

from sslcli.losses import (
    barlow_twins,
    barlow_twins_and_metrics,
    batch_info_nce,
    batch_info_nce_and_metrics,
    byol_regression,
    class_cosines,
    dcl,
    dcl_and_metrics,
    dino,
    dino_and_metrics,
    gaussian_directions,
    info_nce,
    masked_features,
    masked_features_and_metrics,
    masked_pixels,
    masked_pixels_and_metrics,
    negative_cosine,
    nt_xent,
    nt_xent_and_metrics,
    queue_distillation_and_metrics,
    queue_info_nce_and_metrics,
    sigreg,
    sup_con,
    swapped_prediction,
    unit_rows,
    vicreg,
    vicreg_and_metrics,
)
from sslcli.losses.contrast import contrast_bce, contrast_ce, pair_logits

N, D, K = 6, 4, 7
LABELS = torch.tensor([0, 1, 0, 2, 1, 3])


@dataclass(frozen=True)
class Case:
    """A loss of some tensors, and of a temperature where there is one.

    Attributes:
        loss: (*inputs) or (*inputs, temperature) → 0-dim.
        shapes: of the inputs.
        trained: the first so many inputs get a gradient, the others never.
        images: the first so many inputs have a row for each image.
        normalized: lengths of rows do not matter.
        metrics: the same arguments → loss and metrics.
    """

    loss: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = ((N, D), (N, D))
    trained: int = 2
    images: int = 2
    normalized: bool = False
    temperature: float | None = None
    metrics: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        return [rows(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(self.shapes)]

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs, *(() if self.temperature is None else (self.temperature,)))


PAIR, WIDE, QUEUE = ((N, D),) * 2, ((3, 8),) * 2, ((N, D), (N, D), (K, D))
VIEWS = ((N, D),) * 5
CASES = {
    "barlow_twins": Case(barlow_twins, metrics=lambda a, b: barlow_twins_and_metrics((a, b), [(0, 1)])),
    "barlow_twins, wide": Case(barlow_twins, WIDE),
    "vicreg": Case(vicreg, metrics=lambda a, b: vicreg_and_metrics((a, b), [(0, 1)])),
    "vicreg, wide": Case(vicreg, WIDE),
    "byol_regression": Case(byol_regression, trained=1, normalized=True),
    "negative_cosine": Case(negative_cosine, trained=1, normalized=True),
    "masked_features": Case(
        lambda p, x: masked_features(p, x, torch.ones(p.shape[:-1])), trained=1,
        metrics=lambda p, x: masked_features_and_metrics(p, x, torch.ones(p.shape[:-1])),
    ),
    "masked_pixels": Case(masked_pixels, trained=1, metrics=masked_pixels_and_metrics),
    "masked_pixels, not normalized": Case(
        lambda p, x: masked_pixels(p, x, False), trained=1, metrics=lambda p, x: masked_pixels_and_metrics(p, x, False)
    ),
    "nt_xent": Case(nt_xent, normalized=True, temperature=0.25, metrics=nt_xent_and_metrics),
    "sup_con": Case(
        lambda z, t: sup_con(z, LABELS, t), ((N, 2, D),), 1, 0, True, 0.25,
        lambda z, t: (sup_con(z, LABELS, t), class_cosines(z, LABELS)),
    ),
    "sup_con, one": Case(lambda z, t: sup_con(z, LABELS, t, contrast="one"), ((N, 2, D),), 1, 0, True, 0.25),
    "sup_con without labels": Case(
        lambda z, t: sup_con(z, None, t), ((N, 3, D),), 1, 1, True, 0.25,
        lambda z, t: (sup_con(z, None, t), class_cosines(z, None)),
    ),
    "dcl": Case(dcl, ((N, 2, D),), 1, 1, True, 0.25, dcl_and_metrics),
    "info_nce": Case(info_nce, QUEUE, 3, 2, True, 0.25),
    "eqco": Case(lambda *z: info_nce(*z, alpha=50.0), QUEUE, 3, 2, True, 0.25),
    "batch_info_nce": Case(batch_info_nce, PAIR, 1, 2, True, 0.25, batch_info_nce_and_metrics),
    "batch_info_nce to predictions": Case(
        lambda q, k, t: batch_info_nce(q, k, t, keys_have_gradient=True), PAIR, 2, 2, True, 0.25
    ),
    "queue_info_nce": Case(lambda q, k, n: queue_info_nce_and_metrics(q, k, unit_rows(n), 0.25)[0], QUEUE, 2, 2, True),
    "sigreg": Case(lambda z: sigreg(z, gaussian_directions(rows(3 * D).sigmoid().to(z.device), D)), ((N, D),), 1, 0),
    "queue_distillation": Case(
        lambda s, t, n, tau: queue_distillation_and_metrics(s, t, unit_rows(n), tau, 0.1)[0], QUEUE, 1, 2, True, 0.25,
        lambda s, t, n, tau: queue_distillation_and_metrics(s, t, unit_rows(n), tau, 0.1),
    ),
    "contrast_ce": Case(lambda q, k, o, t: contrast_ce(pair_logits(q, k, t, own=o), 50.0), VIEWS[:3], 3, 3, True, 0.25),
    "contrast_bce": Case(lambda q, k, t: contrast_bce(pair_logits(q, k, t)), PAIR, 2, 2, True, 0.25),
    "contrast_bce, given": Case(
        lambda q, k, n, t: contrast_bce(pair_logits(q, k, t, negatives=n, unit_sphere=False)), QUEUE, 3, 2, False, 0.25
    ),
    "swapped_prediction": Case(
        lambda *z: swapped_prediction(z[:3], [q.double().softmax(1) for q in z[3:5]], z[5]), VIEWS, 3, 5, False, 0.25
    ),
    "dino": Case(
        lambda *z: dino(z[:3], z[3:5], z[5], z[6], 0.2), (*VIEWS, (D,)), 3, 5, False, 0.25,
        lambda *z: dino_and_metrics(z[:3], z[3:5], z[5], z[6], 0.2),
    ),
}  # fmt: skip
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def those(wanted: Callable[[Case], Any]) -> Any:
    found = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", found.values(), ids=found.keys())


@every
def test_the_gradient_is_right_and_inputs_that_are_no_part_of_it_get_none(case: Case) -> None:
    inputs = [z.requires_grad_() for z in case.inputs()]
    rest = inputs[case.trained :]
    assert torch.autograd.gradcheck(lambda *z: case(*z, *rest), inputs[: case.trained])
    case(*inputs).backward()
    assert [z.grad is not None for z in inputs] == [True] * case.trained + [False] * len(rest)


@those(lambda case: case.temperature)
def test_a_temperature_may_be_a_tensor_and_has_a_gradient(case: Case) -> None:
    inputs = case.inputs()
    tau = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    assert torch.equal(case.loss(*inputs, tau), case(*inputs))
    assert torch.autograd.gradcheck(lambda t: case.loss(*inputs, t), (tau,))


@those(lambda case: case.temperature)
@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(case: Case, tau: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be positive, not {tau}"):
        case.loss(*case.inputs(), tau)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_within_autocast_too(case: Case, dtype: torch.dtype) -> None:
    # Large enough for float16 not to hold the squares, except where nothing is normalized.
    size = 300 if case.normalized or case.temperature is None else 1
    inputs = [z.mul(size).to(dtype) for z in case.inputs()]
    loss = case(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case(*inputs)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert torch.equal(loss, inside)
    assert torch.equal(loss, case(*(z.float() for z in inputs)))


@every
def test_float64_stays_float64_and_float32_float32(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        assert case(*case.inputs(dtype)).dtype == dtype


@those(lambda case: case.images)
def test_the_order_of_images_does_not_matter_and_the_pairing_of_views_does(case: Case) -> None:
    inputs = case.inputs()
    loss, moved = case(*inputs), [z.roll(1, 0) for z in inputs[: case.images]]
    torch.testing.assert_close(case(*moved, *inputs[case.images :]), loss)
    if case.images > 1:
        assert abs(case(moved[0], *inputs[1:]) - loss) > 1e-4


@those(lambda case: case.normalized)
def test_the_length_of_rows_does_not_matter(case: Case) -> None:
    longer = [z * rows(*z.shape[:-1], 1, seed=9).exp() for z in case.inputs()]
    torch.testing.assert_close(case(*longer), case(*case.inputs()))


@every
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_rows_of_zeros_and_very_long_rows_have_a_finite_loss_and_gradient(case: Case, size: float) -> None:
    inputs = [(size * z).requires_grad_() for z in case.inputs(torch.float32)]
    loss = case(*inputs)
    loss.backward()
    assert loss.isfinite()
    assert all(z.grad.isfinite().all() for z in inputs[: case.trained])


@those(lambda case: len(case.shapes) > 1)
def test_views_of_different_shapes_are_refused(case: Case) -> None:
    first, second, *rest = case.inputs()
    for other in (second[:-1], second[:, :-1]):
        with pytest.raises(ValueError, match="shape"):
            case(first, other, *rest)
    with pytest.raises(ValueError, match="shape"):
        case(*(z[0] for z in (first, second)), *rest)


@those(lambda case: case.metrics)
def test_metrics_come_with_the_same_loss_and_have_no_gradient(case: Case) -> None:
    inputs = [z.requires_grad_() for z in case.inputs()]
    tau = () if case.temperature is None else (case.temperature,)
    loss, metrics = case.metrics(*inputs, *tau)
    assert torch.equal(loss, case(*inputs))
    assert loss.requires_grad
    assert metrics
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(value, metrics[name]) for name, value in case.metrics(*inputs, *tau)[1].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every
def test_on_cuda_nothing_waits_for_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LABELS", LABELS.cuda())
    inputs = [z.cuda().requires_grad_() for z in case.inputs(torch.float32)]
    call = case.metrics or (lambda *z: (case.loss(*z), {}))
    arguments = (*inputs, *(() if case.temperature is None else (torch.tensor(case.temperature, device="cuda"),)))
    try:
        for mode in ("default", "error"):  # the first time libraries may be set up
            torch.cuda.set_sync_debug_mode(mode)
            loss, _ = call(*arguments)
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.undo()
    torch.testing.assert_close(loss.cpu(), case(*case.inputs(torch.float32)), rtol=1e-4, atol=1e-5)
