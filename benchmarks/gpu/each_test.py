"""A pytest plugin (`-p gpu.each_test`): one line of results for each test as soon as it is over."""

from __future__ import annotations

import os

import pytest

from .lines import note


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # With several processes this is called again in the one that started them, which writes.
    if os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.outcome == "passed"):
        return
    why = {} if report.outcome == "passed" else {"why": str(report.longrepr)[-1500:]}
    note(report.nodeid, test=report.outcome, seconds=round(report.duration, 2), **why)
