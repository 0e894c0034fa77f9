"""What all tests share."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_helpers import install  # noqa: F401  # a fixture

from sslcli import plugins
from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.logs import lines_to
from sslcli.runs.arithmetic import settings_restored

# Tests work on tiny tensors, which two threads make slower, not faster; and one thread is the same on every machine.
torch.set_num_threads(1)
# Under `nohup` a hangup is ignored, in a shell's background Ctrl-C, and runs would ignore them too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

#: A run of 4 steps an epoch that takes well under a second.
TINY: dict[str, Any] = {
    "method": {"name": "simclr", "projector": {"output_dim": 8}},
    "backbone": {"name": "resnet18", "stem": "small", "width": 4},
    "data": {"name": "shapes", "count": 32, "size": 16},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"name": "cosine", "warmup_epochs": 1},
    "training": {"epochs": 3, "batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 2, "compile": "none"},
    "checkpoints": {"every_epochs": 1},
    "callbacks": {"knn": None, "online_probe": None, "tensorboard": None, "progress": None},
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Tests start with torch's own settings and one seed, whatever the one before set or drew."""
    torch.manual_seed(0)
    with settings_restored():
        yield
    os.environ.pop("PYTHONSAFEPATH", None)  # set by the program for its children


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The lines that a user is shown while the test runs."""
    lines: list[str] = []
    with lines_to(lines.append):
        yield lines


ConfigMaker = Callable[..., RunConfig]


@pytest.fixture
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Names that are no UTF-8, in what a test printed, cannot be sent from one process of pytest-xdist to another."""
    report: Any = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
