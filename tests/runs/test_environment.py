"""What is written down about machine and versions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sslcli.runs.directory import RunDirectory
from sslcli.runs.environment import describe_environment, processor


def test_a_description_that_is_published_does_not_tell_where_things_lie() -> None:
    described = describe_environment(["ssl", "bench"])
    assert described["command"] == ["ssl", "bench"]
    assert described["cores"] >= 1
    assert not any(str(place) in json.dumps(described) for place in (Path.cwd(), Path.home(), sys.executable))
    assert processor()


def test_a_run_knows_its_directory_and_its_python(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({}, ["ssl", "train"], resumed=False)
    directory.close()
    (start,) = json.loads(directory.environment.read_text())["starts"]
    assert start["directory"] == str(Path.cwd())
    assert start["executable"] == sys.executable
    assert set(describe_environment([])) < set(start)
