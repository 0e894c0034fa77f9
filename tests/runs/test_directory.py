"""Nothing is overwritten, one process at a time writes a run, and a run records where it was started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sslcli.contracts.errors import UserError
from sslcli.runs.directory import RunDirectory
from sslcli.runs.environment import describe_environment, processor


def test_only_an_empty_or_missing_directory_is_new(tmp_path):
    assert RunDirectory(tmp_path).check_new(resume=False) is False
    assert RunDirectory(tmp_path / "a" / "b").check_new(resume=False) is False
    assert not (tmp_path / "a").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    for path, message in (
        (tmp_path, "not empty and contains no run"),
        (tmp_path / "thesis.tex", "is a file"),
        (tmp_path / "thesis.tex" / "run", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            RunDirectory(path).check_new(resume=True)


def test_two_processes_cannot_write_one_run(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.create({"seed": 0}, [], resumed=False)
    with pytest.raises(UserError, match="another process is training this run"):
        second.create({"seed": 0}, [], resumed=True)
    first.close()
    second.create({"seed": 0}, [], resumed=True)
    second.close()


def test_a_run_records_its_paths_and_a_published_description_does_not(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({}, ["ssl", "train"], resumed=False)
    directory.close()
    (start,) = json.loads(directory.environment.read_text())["starts"]
    assert (start["directory"], start["executable"]) == (str(Path.cwd()), sys.executable)
    described = describe_environment(["ssl", "bench"])
    assert set(described) < set(start)
    assert described["command"] == ["ssl", "bench"]
    assert described["cores"] >= 1
    assert not any(str(path) in json.dumps(described) for path in (Path.cwd(), Path.home(), sys.executable))
    assert processor()
