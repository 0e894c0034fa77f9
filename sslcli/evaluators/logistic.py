"""The evaluator `logistic`: multinomial logistic regression on frozen, cached features, solved to its optimum.

L-BFGS in float64 on the full batch (Liu and Nocedal, *On the limited memory BFGS method for large scale optimization*,
Mathematical Programming 45, 1989, with a strong-Wolfe line search); the same objective as scikit-learn's
`LogisticRegression(C=C)`, whose optimum is unique.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from sslcli.contracts.errors import UserError
from sslcli.contracts.evaluation import EvaluationResult, Evaluator, Subject
from sslcli.contracts.options import Options
from sslcli.data.subset import stratified_split
from sslcli.evaluation.scores import accuracy
from sslcli.evaluation.subject import labeled_features, require_parts

from .probes.training import Places, as_list, judged

log = logging.getLogger(__name__)

#: Numbers held in float64 at once: 128 MiB, of features and of scores each.
BLOCK = 1 << 24
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


@dataclass
class Logistic:
    """A fitted classifier.

    Attributes:
        weight: (D, C) float64, for features as they come.
        bias: (C,) float64.
        objective: mean cross-entropy + ‖W‖²/(2·C·N) at the end.
        gradient: largest entry of the objective's gradient there.
        iterations: of L-BFGS.
    """

    weight: Tensor
    bias: Tensor
    objective: float
    gradient: float
    iterations: int

    def scores(self, features: Tensor) -> Tensor:
        """Returns log-probabilities up to a constant per row, (N, C) float64, for features (N, D)."""
        rows = _rows(features, self.weight.shape[1])
        return torch.cat([part.double() @ self.weight + self.bias for part in torch.split(features, rows)])


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    C: float,
    *,
    standardize: bool = False,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    start: Logistic | None = None,
) -> Logistic:
    """Minimizes Σ cross-entropy + ‖W‖²/(2C) over weights W and biases, the biases unpenalized.

    The features are not L2-normalized.

    Args:
        features: (N, D), any float type; worked on in float64, in blocks.
        labels: (N,) int64 on the same device.
        classes: number of classes; one without images is only pushed away from.
        C: inverse strength of the penalty, on the scale of scikit-learn's.
        standardize: divide each feature by its standard deviation first, so that the penalty treats all alike; a
            constant one is left out.
        iterations: at most.
        tolerance: ends where no entry of the gradient of the mean is larger.
        start: a fit to start from (of a neighboring C); the optimum is the same.
    """
    mean, scale = _moments(features, standardize)
    problem = _Problem(features, labels, classes, C, mean, scale)
    parameters = features.new_zeros(features.shape[1] + 1, classes, dtype=torch.float64)
    if start is not None:
        parameters[:-1] = start.weight / scale.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
        parameters[:-1][scale == 0] = 0
        parameters[-1] = start.bias + mean @ start.weight
    parameters.requires_grad_(True)
    # What ends the search is the gradient; the other rule would stop it early where the steps are only slow.
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=tolerance, tolerance_change=0.0,
        history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        value, parameters.grad = problem(parameters.detach())
        return value

    with torch.autocast(features.device.type, enabled=False):
        torch.enable_grad()(optimizer.step)(closure)  # type: ignore[no-untyped-call]
        found = parameters.detach()
        objective, slope = problem(found)
    weight = found[:-1] * scale.unsqueeze(1)
    done = int(optimizer.state[parameters]["n_iter"])
    return Logistic(weight, found[-1] - mean @ weight, objective, float(slope.abs().max()), done)


class _Problem:
    """The objective over centered features, which the free biases make the same problem, only rounder."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, C: float, mean: Tensor, scale: Tensor) -> None:
        self.features, self.labels, self.mean, self.scale = features, labels, mean, scale
        self.penalty = 1 / (C * len(features))
        self.rows = _rows(features, classes)

    def __call__(self, parameters: Tensor) -> tuple[float, Tensor]:
        """Returns the value and the gradient (D + 1, C) at weights and, in the last row, biases."""
        weight, bias = parameters[:-1], parameters[-1]
        total = parameters.new_zeros(())
        gradient = torch.zeros_like(parameters)
        for x, y in zip(torch.split(self.features, self.rows), torch.split(self.labels, self.rows), strict=True):
            x = (x.double() - self.mean) * self.scale
            log_p = torch.log_softmax(x @ weight + bias, dim=1)
            own = y.unsqueeze(1)
            total -= log_p.gather(1, own).sum()
            error = log_p.exp_().scatter_add_(1, own, log_p.new_full((), -1.0).expand(len(y), 1))
            gradient[:-1].addmm_(x.T, error)
            gradient[-1] += error.sum(dim=0)
        gradient /= len(self.features)
        gradient[:-1].add_(weight, alpha=self.penalty)
        return float(total / len(self.features) + self.penalty / 2 * weight.square().sum()), gradient


def _moments(features: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    """Mean (D,) and factor (D,), float64; the factor is 1, or 1/std, and 0 for a feature that never changes."""
    rows = _rows(features, 1)
    mean = torch.stack([part.double().sum(dim=0) for part in torch.split(features, rows)]).sum(dim=0) / len(features)
    if not standardize:
        return mean, torch.ones_like(mean)
    squares = [(part.double() - mean).square().sum(dim=0) for part in torch.split(features, rows)]
    std = (torch.stack(squares).sum(dim=0) / len(features)).sqrt()
    # The mean of equal float32 numbers is off by a rounding, which must not be blown up to a standard deviation of 1.
    constant = std <= 1e-12 * mean.abs().clamp_min(1e-300)
    return mean, torch.where(constant, 0.0, 1 / std.masked_fill(constant, 1.0))


def _rows(features: Tensor, classes: int) -> int:
    return max(1, BLOCK // max(features.shape[1], classes))


class LogisticOptions(Options):
    C: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_list), Field(min_length=1)] = STRENGTHS
    """Inverse strengths of the L2 penalty to choose from, on the scale of scikit-learn's `C`."""
    standardize: bool = False
    """Divide each feature by its standard deviation over the training images first, so that the penalty treats all
    alike."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images, the same of each class, on which C is chosen; none for a single C."""
    iterations: int = Field(default=1000, ge=1)
    """Iterations of L-BFGS at most."""
    tolerance: float = Field(default=1e-6, gt=0)
    """The optimum is reached where no entry of the gradient of the mean loss is larger."""
    top: Places = (1, 5)
    """Which top-k accuracies to report, of k classes each; those that would hold all classes are left out."""


class LogisticRegression(Evaluator):
    """Multinomial logistic regression to its optimum: nothing to tune but the penalty, chosen on held-out images."""

    Options = LogisticOptions
    options: LogisticOptions

    def evaluate(self, subject: Subject) -> EvaluationResult:
        options = self.options
        classes = require_parts(subject)
        features, labels = labeled_features(subject, "train")
        C, start, sweep, held_out = self._choose(subject, features, labels, classes)
        model = self._fit(features, labels, classes, C, start)
        if model.gradient > options.tolerance:
            log.info(
                f"logistic: not at the optimum after {model.iterations} iterations (gradient {model.gradient:.1e}); "
                "give more with iterations=…, or standardize=true"
            )
        subject.decide({} if held_out == 0 else {"C": C})
        test_features, test_labels = labeled_features(subject, "eval")
        scores = model.scores(test_features)
        names = subject.dataset("eval").info.classes or ()
        fit = {"gradient": model.gradient, "iterations": model.iterations, "objective": model.objective}
        protocol = {
            **subject.describe(),
            "evaluator": "logistic",
            "classifier": "multinomial logistic regression, biases unpenalized",
            "optimizer": "L-BFGS, strong Wolfe, float64, full batch",
            **options.plain(),
            "choice": "none"
            if held_out == 0
            else "highest top-1 on the held-out training images, of equal ones the lowest loss there",
            "after_choice": "fitted again on all training images",
            "chosen_C": C,
            "converged": model.gradient <= options.tolerance,
            "held_out_images": held_out,
            "train_images": len(labels),
            "eval_images": len(test_labels),
        }
        metrics, by_class = judged(scores, test_labels, options.top, names)
        return EvaluationResult(metrics, protocol, {"fit": fit, "sweep": sweep, **by_class})

    def _fit(self, x: Tensor, y: Tensor, classes: int, C: float, start: Logistic | None) -> Logistic:
        options = self.options
        return fit_logistic(
            x, y, classes, C, standardize=options.standardize, iterations=options.iterations,
            tolerance=options.tolerance, start=start,
        )  # fmt: skip

    def _choose(
        self, subject: Subject, features: Tensor, labels: Tensor, classes: int
    ) -> tuple[float, Logistic | None, list[dict[str, Any]], int]:
        """Returns the best C, its fit on the other training images, a row for each C, and how many were held out."""
        strengths = sorted(set(self.options.C))
        if len(strengths) == 1:
            return strengths[0], None, [], 0
        fit, held_out = stratified_split(labels, self.options.held_out, subject.seed)
        if len(held_out) == 0:
            raise UserError("logistic: no class of the training part has two images, so none can be held out; use more")
        log.info(f"logistic: {len(strengths)} strengths on {len(fit):,} features")
        rows, others = fit.to(features.device), held_out.to(features.device)
        x, y, x_out, y_out = features[rows], labels[rows], features[others], labels[others]
        models: list[Logistic] = []
        sweep: list[dict[str, Any]] = []
        for C in strengths:  # from the strongest penalty on, each fit starting from the one before
            models.append(self._fit(x, y, classes, C, models[-1] if models else None))
            scores = models[-1].scores(x_out)
            loss = float(torch.nn.functional.cross_entropy(scores, y_out))
            sweep.append(
                {
                    "C": C, "held_out_top1": accuracy(scores, y_out), "held_out_loss": loss,
                    "iterations": models[-1].iterations, "gradient": models[-1].gradient,
                }
            )  # fmt: skip
        best = max(range(len(sweep)), key=lambda i: (sweep[i]["held_out_top1"], -sweep[i]["held_out_loss"], -i))
        log.info(f"logistic: C {strengths[best]:g}; fitting it on all {len(labels):,}")
        return strengths[best], models[best], sweep, len(held_out)
