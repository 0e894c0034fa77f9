"""What all tests share."""

from __future__ import annotations

import copy
import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer.testing
from plugin_helpers import install  # noqa: F401  # a fixture
from torch import Tensor

from sslcli import plugins
from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.datasets import shapes
from sslcli.evaluation import results
from sslcli.evaluation.confusion import write_confusion
from sslcli.logs import lines_to
from sslcli.runs.arithmetic import settings_restored
from sslcli.storage import write_text

# Tests work on tiny tensors, which two threads make slower, not faster; and one thread is the same on every machine.
torch.set_num_threads(1)
# Typer builds all commands anew for each call, which takes as long as reading a config.
typer.testing._get_command = functools.cache(typer.testing._get_command)
# Under `nohup` a hangup is ignored, in a shell's background Ctrl-C, and runs would ignore them too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

#: `torch.manual_seed` also notes the seed for devices that are not there, with a stack trace for each.
seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed

#: A run of 4 steps an epoch that takes half a second, a fifth less without the colors' jitter.
TINY: dict[str, Any] = {
    "method": {"name": "simclr", "projector": {"output_dim": 8}},
    "backbone": {"name": "resnet18", "stem": "small", "width": 4},
    "data": {"name": "shapes", "count": 32, "size": 16},
    "views": {"jitter": 0, "grayscale": 0},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"name": "cosine", "warmup_epochs": 1},
    "training": {
        "epochs": 3,
        "batch_size": 8,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 2,
        "compile": "none",
        "preview": 0,
    },
    "checkpoints": {"every_epochs": 1},
    "callbacks": {"knn": None, "online_probe": None, "tensorboard": None, "progress": None},
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Tests start with torch's own settings and one seed, whatever the one before set or drew."""
    seed(0)
    with settings_restored():
        yield
    os.environ.pop("PYTHONSAFEPATH", None)  # set by the program for its children


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The lines that a user is shown while the test runs."""
    lines: list[str] = []
    with lines_to(lines.append):
        yield lines


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """The plot of a confusion matrix, which takes most of the time of a small evaluation, is an empty picture here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_confusion", lambda path, *_: write_text(path, "no picture"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _shapes_drawn_once() -> Iterator[None]:
    """Runs of tests train on the same few pictures, whose drawing takes as long as three of their steps."""
    plain = shapes.draw

    @functools.lru_cache(maxsize=64)
    def once(seed: int, split: int, indices: tuple[int, ...], size: int) -> Tensor:
        return plain(seed, split, torch.tensor(indices), size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "draw", lambda seed, split, at, size: once(seed, split, tuple(at.tolist()), size).clone())
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of this test draw."""
    monkeypatch.setattr(results, "write_confusion", write_confusion)


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--dry-run` does not find out the peak of a step, which takes seconds, in this test."""
    shown = SimpleNamespace(line=lambda: "unknown", fits=None)
    monkeypatch.setattr("sslcli.training.estimate.estimate", lambda session, processes: shown)


ConfigMaker = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def tiny() -> ConfigMaker:
    """Returns a function from overrides (`"training.epochs=2"`) to the config of a tiny run."""

    def make(*overrides: str) -> RunConfig:
        document = Document(copy.deepcopy(TINY), {(): "test"})
        apply_overrides(document, list(overrides))
        return resolve(document)

    return make


@pytest.fixture
def odd_plugins() -> Iterator[Path]:
    """Registers the plugins of `odd_plugins.py` as `--plugin` does, for one test."""
    path = Path(__file__).parent / "odd_plugins.py"
    plugins.register_file(path)
    yield path
    plugins.clear_cache()


class Costs:
    """Processor seconds of tests and of the processes that they wait for, by file; on a busy machine they say more
    than the clock."""

    #: What a file of quick tests should not need on a machine of which nothing else wants anything.
    BOUND = 10.0
    #: Of all tests, from which on they are worth a line: not after a few.
    SHOWN = 60.0

    def __init__(self) -> None:
        self.last, self.by_file = self.now(), Counter[str]()

    @staticmethod
    def now() -> float:
        return sum(os.times()[:4])

    def since(self) -> float:
        """Seconds since the last call."""
        before, self.last = self.last, self.now()
        return self.last - before

    def lines(self) -> list[str]:
        total = sum(self.by_file.values())
        if total < self.SHOWN:
            return []
        dear = [f"{cost:4.0f} s  {file}" for file, cost in self.by_file.most_common() if cost > self.BOUND]
        above = [f"files above {self.BOUND:.0f} s, where slow tests or smaller ones would help:", *dear] if dear else []
        return [f"processor time of the tests: {total:.0f} s", *above]


costs = Costs()
#: Files with the highest costs, which start first: so the workers end together.
FIRST = [
    "resume", "network_exporters", "first_contract", "every_plugin", "stream_runs", "methods", "phased_runs",
    "collapse", "contract_plugins", "report", "eval_command", "teachers", "cache_runs", "classifier_exporter",
    "train_command", "dynamo", "projector_exporter", "estimate", "out_of_memory",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in FIRST)


def pytest_collection_finish() -> None:
    costs.since()


def pytest_runtest_logreport(report: Any) -> None:
    costs.by_file[report.location[0]] += getattr(report, "cost", 0.0)  # none if its worker died


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.option.markexpr == "not slow":
        for line in costs.lines():
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Names that are no UTF-8, in what a test printed, cannot be sent from one process of pytest-xdist to another."""
    report: Any = yield
    report.cost = costs.since()
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
