"""`ssl train --max-restarts` and what is in the run directory before the first start."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import folder as folder  # fixtures
from cli_helpers import run as run
from cli_helpers import trained as trained
from run_helpers import done, refused


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is given to the launcher, which starts nothing."""
    found: list[list[str]] = []
    monkeypatch.setattr("sslcli.training.launch.launch", lambda words, *more, **options: found.append(words) or 0)
    return found


@pytest.mark.parametrize("several", [["--max-restarts", "2"], ["--devices", "2"]])
def test_a_run_that_is_there_is_refused_before_anything_is_started(
    run: Path, started: list[list[str]], several: list[str]
) -> None:
    assert "already contains a run" in refused("train", "c.yaml", "--output", run, *several)
    assert started == []


def test_with_resume_it_goes_on_and_a_new_one_is_started(run: Path, started: list[list[str]]) -> None:
    done("train", "c.yaml", "--output", run, "--max-restarts", "2", "--resume")
    done("train", "c.yaml", "--output", "other", "--max-restarts", "2")
    assert ["--resume" in words for words in started] == [True, False]
    assert not Path("other").exists()
