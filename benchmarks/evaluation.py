"""Do others get our numbers? One exported network, evaluated by `ssl eval`'s evaluators and by other programs.

    python benchmarks/evaluation.py --root DIR/cifar10 RUN [RUN …] [--images 5000] [--tests 2000] [--output NAME]

RUN is a run directory or a backbone file. The first one is exported by the exporter `torch-export`, and its features
are computed once more: by that program, on images that are read from CIFAR-10's files here, without our code. On them
scikit-learn, lightly and torch's own layers are fitted and tested; ours are the evaluators of `ssl eval` on the
features that these compute themselves. `different` counts the test images that are predicted as different classes,
`outputs` is the largest difference of two probabilities (of features: of their values, over the largest value).

Then the spread: of the linear probe over seeds, and in groups of three as `ssl eval --seeds 3` prints it; over parts of
the test images with one classifier, beside √(p(1−p)/n); and with several RUNs, over the networks, each with seed 0.
"""

from __future__ import annotations

import argparse
import math
import pickle
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from report import circumstances, is_installed, publish, say
from torch import Tensor, nn

from sslcli import export
from sslcli.config.document import Document
from sslcli.contracts.evaluation import EvaluationResult, LinearClassifier
from sslcli.data.subset import Subset, stratified_choice
from sslcli.evaluation.evaluate import run_evaluator
from sslcli.evaluation.parts import LabeledParts, open_parts
from sslcli.evaluation.subject import FrozenSubject, labeled_features
from sslcli.evaluators.knn import nearest, vote
from sslcli.plugins import load
from sslcli.randomness import permutation, seed_for
from sslcli.runs.arithmetic import exact_float32
from sslcli.runs.trained import load_trained

CLASSES = 10
NEIGHBORS = ((20, 0.07), (200, 0.1))  # our default, and lightly's
#: Of the classifier on parts of the test images.
PART = 500


@dataclass
class Data:
    """Features and labels of training and test images."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass
class Scores:
    """What a program says of the test images: probabilities (or predictions alone) and its name."""

    name: str
    predicted: Tensor
    probabilities: Tensor | None = None
    explanation: str = ""

    @classmethod
    def of(cls, name: str, logits: Tensor, explanation: str = "") -> Scores:
        return cls(name, logits.argmax(dim=1), logits.double().softmax(dim=1), explanation)


def subject_of(path: Path, parts: LabeledParts) -> FrozenSubject:
    return FrozenSubject(load_trained(path), parts.train, parts.test, torch.device("cpu"))


def evaluated(name: str, subject: FrozenSubject, seed: int = 0, **options: Any) -> EvaluationResult:
    """As `ssl eval` does it."""
    cls = load("evaluators", name)
    with exact_float32():
        return run_evaluator(name, cls(cls.Options.parse(options)), subject, seed)


def read_again(path: Path, root: Path, parts: LabeledParts) -> Data:
    """The features of the same images by the exported program alone."""
    with tempfile.TemporaryDirectory() as folder:
        export(path, "torch-export", Path(folder) / "network.pt2", normalize=True)
        program = torch.export.load(Path(folder) / "network.pt2").module()
    found: list[Tensor] = []
    for names, part in (([f"data_batch_{n}" for n in range(1, 6)], parts.train), (["test_batch"], parts.test)):
        batches = [pickle.loads((root / "cifar-10-batches-py" / n).read_bytes(), encoding="latin1") for n in names]
        assert isinstance(part, Subset)
        pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches]))[part.indices]
        labels = torch.tensor([label for batch in batches for label in batch["labels"]])[part.indices]
        with torch.no_grad():
            blocks = [program(block.reshape(-1, 3, 32, 32).float() / 255) for block in pixels.split(100)]
        found += [torch.cat(blocks), labels]
    return Data(*found)


def knn_rows(own: Data, theirs: Data, k: int, temperature: float) -> list[Scores]:
    similarity, index = nearest(own.x, own.x_test, k)
    votes = vote(similarity, own.y[index], CLASSES, temperature).clamp_min(0)
    rows = [Scores("ours", votes.argmax(dim=1), votes / votes.sum(dim=1, keepdim=True))]
    if is_installed("lightly"):
        from lightly.utils.benchmarking import knn_predict

        bank, test = (F.normalize(x, dim=1) for x in (theirs.x, theirs.x_test))
        predicted = knn_predict(test, bank.T.contiguous(), theirs.y, CLASSES, k, temperature)[:, 0]
        rows.append(Scores("lightly", predicted, None, "it adds up the votes in float32"))
    if is_installed("sklearn"):
        from sklearn.neighbors import KNeighborsClassifier

        weights = {"weights": lambda distance: np.exp((1 - distance) / temperature)}
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute", **weights)
        model.fit(theirs.x.double().numpy(), theirs.y.numpy())
        shares = torch.from_numpy(model.predict_proba(theirs.x_test.double().numpy()))
        rows.append(Scores("scikit-learn", shares.argmax(dim=1), shares, "its similarities are float64"))
    return rows


def logistic_rows(own: LinearClassifier, x_test: Tensor, theirs: Data, C: float) -> list[Scores]:
    rows = [Scores.of("ours", x_test @ own.weight.T + own.bias)]
    x, x_test = theirs.x.double(), theirs.x_test.double()
    if is_installed("sklearn"):
        from sklearn.linear_model import LogisticRegression

        for name, options, explanation in (
            ("scikit-learn", {"tol": 1e-9, "max_iter": 20_000}, "the same optimum"),
            ("scikit-learn, its default max_iter", {}, "it ends after 100 iterations, before the optimum"),
        ):
            model = LogisticRegression(C=C, **options).fit(x.numpy(), theirs.y.numpy())
            rows.append(Scores.of(name, torch.from_numpy(model.decision_function(x_test.numpy())), explanation))
    weight, bias = torch.zeros(CLASSES, x.shape[1], dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)
    center = x.mean(dim=0)  # biases are free, so this changes nothing but the number of iterations
    parameters = [each.requires_grad_() for each in (weight, bias)]
    search = torch.optim.LBFGS(
        parameters, max_iter=20_000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy((x - center) @ weight.T + bias, theirs.y) + weight.square().sum() / (2 * C * len(x))
        loss.backward()
        return loss

    search.step(closure)
    logits = ((x_test - center) @ weight.T + bias).detach()
    return [*rows, Scores.of("torch's LBFGS, float64", logits, "the same optimum")]


def linear_rows(
    own: LinearClassifier, chosen: dict[str, Any], x_test: Tensor, theirs: Data, epochs: int
) -> list[Scores]:
    """Beside `torch.nn.Linear` with torch's SGD and cosine, in our order of images and in orders of its own."""
    rows, lr = [Scores.of("ours", x_test @ own.weight.T + own.bias)], chosen["lr"]
    if chosen["standardize"]:
        mean, std = theirs.x.mean(dim=0), (theirs.x.var(dim=0, correction=0) + 1e-5).sqrt()
        theirs = replace(theirs, x=(theirs.x - mean) / std, x_test=(theirs.x_test - mean) / std)
    ours = [permutation(seed_for(0, 2), epoch, len(theirs.x)) for epoch in range(epochs)]
    rows.append(Scores.of("torch, our order", torch_probe(lr, theirs, ours), "rounding"))
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(theirs.x), generator=draw) for _ in range(epochs)]
        logits = torch_probe(lr, theirs, orders)
        rows.append(Scores.of(f"torch, its order {seed}", logits, "other batches: the spread over seeds"))
    return rows


def torch_probe(lr: float, data: Data, orders: Sequence[Tensor]) -> Tensor:
    """The scores of the test images by a layer that was trained on the images in an order for each epoch."""
    layer = nn.Linear(data.x.shape[1], CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, len(orders) * math.ceil(len(data.x) / 256))
    for order in orders:
        for batch in order.split(256):
            sgd.zero_grad()
            F.cross_entropy(layer(data.x[batch]), data.y[batch]).backward()
            sgd.step()
            schedule.step()
    with torch.no_grad():
        return layer(data.x_test)


def compared(rows: Sequence[Scores], labels: Tensor) -> list[dict[str, Any]]:
    """Each program's accuracy, and its differences from ours, which is the first, computed here from what `ssl eval`
    keeps; `ssl eval` is the accuracy that it reports."""
    ours, found = rows[0], []
    for row in rows:
        line: dict[str, Any] = {"by": row.name, "top1": float((row.predicted == labels).double().mean())}
        if row is not ours:
            line["different"] = int((row.predicted != ours.predicted).sum())
            if row.probabilities is not None and ours.probabilities is not None:
                line["outputs"] = float(f"{float((row.probabilities - ours.probabilities).abs().max()):.2g}")
            line["explanation"] = row.explanation if line["different"] or line.get("outputs") else "equal"
        found.append(line)
    return found


def agreement(path: Path, root: Path, parts: LabeledParts, epochs: int) -> dict[str, Any]:
    """Every comparison on one network, by what is compared."""
    subject = subject_of(path, parts)
    own = Data(*labeled_features(subject, "train"), *labeled_features(subject, "eval"))
    theirs = read_again(path, root, parts)
    assert torch.equal(own.y, theirs.y)
    assert torch.equal(own.y_test, theirs.y_test)
    off = max(float((a - b).abs().max()) for a, b in ((own.x, theirs.x), (own.x_test, theirs.x_test)))
    scale = float(own.x.abs().max())
    found: dict[str, Any] = {"features": [{"by": "torch-export", "outputs": float(f"{off / scale:.2g}")}]}
    for k, temperature in NEIGHBORS:
        name = f"knn, k {k}, temperature {temperature}"
        found[name] = compared(knn_rows(own, theirs, k, temperature), own.y_test)
        found[name][0]["ssl eval"] = evaluated("knn", subject, k=k, temperature=temperature).metrics["top1"]
    result = evaluated("logistic", subject)
    C = result.details["chosen"]["C"]
    for strength in sorted({1.0, C}):
        result = evaluated("logistic", subject, C=strength, tolerance=1e-8, iterations=20_000)
        assert result.classifier is not None
        name = f"logistic, C {strength:g}" + (", as chosen" if strength == C else "")
        found[name] = compared(logistic_rows(result.classifier, own.x_test, theirs, strength), own.y_test)
        found[name][0]["ssl eval"] = result.metrics["top1"]
    result = evaluated("linear", subject, epochs=epochs)
    chosen, classifier = result.details["chosen"], result.classifier
    assert classifier is not None
    name = f"linear, lr {chosen['lr']:g}, standardize {str(chosen['standardize']).lower()}"
    found[name] = compared(linear_rows(classifier, chosen, own.x_test, theirs, epochs), own.y_test)
    found[name][0]["ssl eval"] = result.metrics["top1"]
    return found


def spreads(paths: Sequence[Path], parts: LabeledParts, seeds: int, epochs: int) -> dict[str, Any]:
    """What ± over seeds has, and what it does not have, as standard deviations in points of a percent."""
    subject = subject_of(paths[0], parts)
    top1 = [100 * evaluated("linear", subject, seed, epochs=epochs).metrics["top1"] for seed in range(seeds)]
    groups = [statistics.stdev(top1[at : at + 3]) for at in range(0, seeds - 2, 3)]  # of independent repetitions
    classifier = evaluated("linear", subject, epochs=epochs).classifier
    x, y = labeled_features(subject, "eval")
    assert classifier is not None
    right = ((x @ classifier.weight.T + classifier.bias).argmax(dim=1) == y).double()
    pieces = [float(100 * each.mean()) for each in right.split(PART) if len(each) == PART]
    p = float(right.mean())
    found = {
        "top1": top1,
        "mean": statistics.mean(top1),
        "over seeds": statistics.stdev(top1),
        "printed for three seeds": {
            "root mean square": math.sqrt(statistics.fmean(each**2 for each in groups)),
            "least": min(groups), "most": max(groups),
        },
        "of the test images, √(p(1−p)/n)": 100 * math.sqrt(p * (1 - p) / len(right)),
    }  # fmt: skip
    if len(pieces) > 1:
        expected = 100 * math.sqrt(p * (1 - p) / PART)
        found[f"over parts of {PART} test images"] = {"seen": statistics.stdev(pieces), "expected": expected}
    if len(paths) > 1:
        values = [100 * evaluated("linear", subject_of(path, parts), epochs=epochs).metrics["top1"] for path in paths]
        found["over networks"] = {"top1": values, "std": statistics.stdev(values)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000, help="to train on")
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    parser.add_argument("--epochs", type=int, default=100, help="of the linear probe")
    parser.add_argument("--seeds", type=int, default=12, help="of the linear probe; at least 3")
    parser.add_argument("--output", help="name of a JSON file in benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.seeds < 3:
        parser.error(f"--seeds: {arguments.seeds}: a spread is printed for three seeds, so there should be 3 or more")
    whole = open_parts({"name": "cifar10", "root": str(arguments.root)}, Document({}, {}), needs_labels=True)
    parts = chosen_of(whole, arguments.images, arguments.tests)
    found = agreement(arguments.networks[0], arguments.root, parts, arguments.epochs)
    spread = spreads(arguments.networks, parts, arguments.seeds, arguments.epochs)
    about = {**circumstances("lightly", "scikit-learn"), "images": len(parts.train), "tests": len(parts.test)}
    for name, lines in found.items():
        for line in lines:
            say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in line.items()))
    publish({**about, "agreement": found, "spread": spread}, arguments.output)


def chosen_of(whole: LabeledParts, images: int, tests: int) -> LabeledParts:
    """Some images of each part, the same share of each class."""
    train, test = (
        Subset(data, stratified_choice(data.labels, count))
        for data, count in ((whole.train, images), (whole.test, tests))
        if data.labels is not None
    )
    return LabeledParts(train, test, True, whole.view_size, {})


if __name__ == "__main__":
    main()
