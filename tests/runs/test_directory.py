"""Nothing is overwritten, and one process at a time writes a run."""

from __future__ import annotations

import pytest

from sslcli.contracts.errors import UserError
from sslcli.runs.directory import RunDirectory


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no run"):
        RunDirectory(tmp_path).check_new(resume=True)


def test_a_file_is_refused_also_as_a_parent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file").check_new(resume=False)
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file" / "run").check_new(resume=False)


def test_an_empty_directory_and_a_missing_one_are_new(tmp_path):
    assert RunDirectory(tmp_path).check_new(resume=False) is False
    assert RunDirectory(tmp_path / "a" / "b").check_new(resume=False) is False
    assert not (tmp_path / "a").exists()


def test_two_processes_cannot_write_one_run(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.create({"seed": 0}, [], resumed=False)
    with pytest.raises(UserError, match="another process is training this run"):
        second.create({"seed": 0}, [], resumed=True)
    first.close()
    second.create({"seed": 0}, [], resumed=True)
    second.close()
