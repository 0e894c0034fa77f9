"""The log as it is read while it grows."""

from __future__ import annotations

from pathlib import Path

from sslcli.runs.metrics import Log, finite


def test_only_what_is_new_is_parsed_and_a_log_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    assert log.read() == []
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [line["step"] for line in log.read()] == [1, 2]
    kept = log.records[0]
    with path.open("a") as file:
        file.write(', "no"\n{"step": 3}\n\n[1]\n{"step": 4, "a')
    assert [line["step"] for line in log.read()] == [1, 3]
    with path.open("a") as file:
        file.write('": 1}\n')
    assert log.read()[-1] == {"step": 4, "a": 1}
    assert log.records[0] is kept
    path.write_text('{"step": 9}\n')
    assert log.read() == [{"step": 9}]
    path.unlink()
    assert log.read() == []


def test_what_is_no_number_is_none() -> None:
    assert [finite(value) for value in (1, 2.5, True, None, "1", [1], 10**400, float("nan"))] == [1, 2.5, *[None] * 6]
