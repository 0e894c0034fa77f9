"""The evaluator `logistic`: multinomial logistic regression on frozen, cached features, solved to its optimum.

L-BFGS in float64 on the full batch (Liu and Nocedal, *On the limited memory BFGS method for large scale optimization*,
Mathematical Programming 45, 1989, with a strong-Wolfe line search); the same objective as scikit-learn's
`LogisticRegression(C=C)`, whose optimum is unique.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from sslcli.contracts.evaluation import LinearClassifier
from sslcli.contracts.options import Options
from sslcli.evaluation.scores import accuracy
from sslcli.evaluation.subject import labeled_features

from .probes.template import Probe, Trial
from .probes.training import Counts, as_list

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
        classes: number of classes; one without images is never an image's label.
        C: inverse strength of the penalty, on the scale of scikit-learn's.
        standardize: divide each feature by its standard deviation first, so that the penalty treats all alike; a
            constant one is left out.
        iterations: at most.
        tolerance: ends where no entry of the gradient of the mean is larger.
        start: a fit to start from (of a neighboring C); the optimum is the same.
    """
    mean, scale = _moments(features, standardize)
    problem = partial(_objective, features, labels, 1 / (C * len(features)), mean, scale)
    parameters = features.new_zeros(features.shape[1] + 1, classes, dtype=torch.float64)
    if start is not None:
        parameters[:-1] = start.weight / scale.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
        parameters[:-1][scale == 0] = 0
        parameters[-1] = start.bias + mean @ start.weight
    parameters.requires_grad_(True)
    # The gradient alone ends the search; the rule for small changes would stop it early where progress is slow.
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
        objective, gradient = problem(found)
    weight = found[:-1] * scale.unsqueeze(1)
    done = int(optimizer.state[parameters]["n_iter"])
    return Logistic(weight, found[-1] - mean @ weight, objective, float(gradient.abs().max()), done)


def _objective(
    features: Tensor, labels: Tensor, penalty: float, mean: Tensor, scale: Tensor, parameters: Tensor
) -> tuple[float, Tensor]:
    """The value and the gradient (D + 1, C) at weights and, in the last row, biases, over centered features: the same
    problem, since biases are free, and better conditioned."""
    weight, bias = parameters[:-1], parameters[-1]
    total = parameters.new_zeros(())
    gradient = torch.zeros_like(parameters)
    rows = _rows(features, len(bias))
    for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
        x = (x.double() - mean) * scale
        log_p = torch.log_softmax(x @ weight + bias, dim=1)
        own = y.unsqueeze(1)
        total -= log_p.gather(1, own).sum()
        error = log_p.exp_().scatter_add_(1, own, log_p.new_full((), -1.0).expand(len(y), 1))
        gradient[:-1].addmm_(x.T, error)
        gradient[-1] += error.sum(dim=0)
    gradient /= len(features)
    gradient[:-1].add_(weight, alpha=penalty)
    return float(total / len(features) + penalty / 2 * weight.square().sum()), gradient


def _moments(features: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    """Mean (D,) and factor (D,), float64; the factor is 1, or 1/std, and 0 for a constant feature."""
    rows = _rows(features, 1)
    mean = torch.stack([part.double().sum(dim=0) for part in torch.split(features, rows)]).sum(dim=0) / len(features)
    if not standardize:
        return mean, torch.ones_like(mean)
    squares = [(part.double() - mean).square().sum(dim=0) for part in torch.split(features, rows)]
    std = (torch.stack(squares).sum(dim=0) / len(features)).sqrt()
    # The mean of equal float32 numbers has a rounding error, which must not be scaled to a standard deviation of 1.
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
    """Fraction of the training images, the same for each class, on which C is chosen; unused for a single C."""
    iterations: int = Field(default=1000, ge=1)
    """Maximum number of L-BFGS iterations."""
    tolerance: float = Field(default=1e-6, gt=0)
    """The optimum is reached when no entry of the gradient of the mean loss is larger than this."""
    top: Counts = (1, 5)
    """Which top-k accuracies to report; k from the number of classes on is skipped, since it is always 1."""


class LogisticRegression(Probe):
    """Logistic regression.
    Multinomial logistic regression to its optimum: nothing to tune but the penalty, chosen on held-out images."""

    Options = LogisticOptions
    options: LogisticOptions
    name = "logistic"

    def prepare(self) -> None:
        self.features, self.labels = labeled_features(self.subject, "train")
        # From the strongest penalty on, since each fit starts from the one before.
        self.candidates = [{"C": C} for C in sorted(set(self.options.C))]

    def train(
        self, candidates: Sequence[dict[str, Any]], images: Tensor, held_out: Tensor | None, start: Trial | None
    ) -> list[Trial]:
        options, device = self.options, self.features.device
        x, y = self.features, self.labels
        if held_out is not None:  # all images need no copy
            x, y = x[images.to(device)], y[images.to(device)]
        model: Logistic | None = None if start is None else start.model
        trials = []
        for settings in candidates:
            model = fit_logistic(
                x, y, self.classes, settings["C"], standardize=options.standardize, iterations=options.iterations,
                tolerance=options.tolerance, start=model,
            )  # fmt: skip
            fit = {"gradient": model.gradient, "iterations": model.iterations, "objective": model.objective}
            trial = Trial(settings, model, details={"fit": fit})
            if held_out is not None:
                rows = held_out.to(device)
                scores, labels = model.scores(self.features[rows]), self.labels[rows]
                trial.top1, trial.loss = accuracy(scores, labels), float(F.cross_entropy(scores, labels))
                trial.measured = {"iterations": model.iterations, "gradient": model.gradient}
            elif model.gradient > options.tolerance:
                log.info(
                    f"logistic: optimum not reached after {model.iterations} iterations (gradient "
                    f"{model.gradient:.1e}); raise iterations=…, or set standardize=true"
                )
            trials.append(trial)
        return trials

    def test(self, trial: Trial) -> tuple[Tensor, Tensor]:
        features, labels = labeled_features(self.subject, "eval")
        return trial.model.scores(features), labels

    def classifier(self, trial: Trial) -> LinearClassifier:
        return LinearClassifier(trial.model.weight.T.float(), trial.model.bias.float())

    def describe(self, trial: Trial, images: int) -> dict[str, Any]:
        return {
            "classifier": "multinomial logistic regression, biases unpenalized",
            "optimizer": "L-BFGS, strong Wolfe, float64, full batch",
            **self.options.plain(),
            "converged": trial.model.gradient <= self.options.tolerance,
        }
