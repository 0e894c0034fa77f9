"""Output that cannot be written does not end the work, and never lands in another file."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sslcli.std_streams import Lenient

PROGRAM = "from sslcli.std_streams import be_lenient, open_closed; open_closed(); be_lenient('stdout', 'stderr'); "


def code_of(program: str, redirected: str) -> int:
    words = ["sh", "-c", f'"$0" -c "$1" {redirected}', sys.executable, PROGRAM + program]
    return subprocess.run(words, check=False).returncode


def test_a_full_disk_loses_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log"
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (closing it fails)
    Lenient(full).write("lost\n")
    Lenient(full).flush()
    with suppress(OSError):
        full.close()
    file = path.open("w")
    stream = Lenient(file)
    assert stream.write("kept\n") == 5
    stream.flush()
    assert (stream.isatty(), path.read_text()) == (False, "kept\n")
    file.close()
    stream.write("to a closed file")


def test_what_cannot_be_encoded_is_still_an_error(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file, pytest.raises(UnicodeEncodeError):
        Lenient(file).write("é")


def test_a_pipe_that_nobody_reads_is_replaced_for_all_that_writes_to_its_descriptor() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as pipe:
        Lenient(pipe).write("lost\n")
        assert os.write(write, b"also lost") == 9  # as other languages do


@pytest.mark.parametrize("redirected", [">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
def test_a_program_ends_with_success_though_nothing_can_be_shown(redirected: str) -> None:
    assert code_of("import sys; print('x' * 10000); print('y', file=sys.stderr)", redirected) == 0


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    written = f"import os; f = open({str(path)!r}, 'w'); os.write(2, b'a warning of C++'); print('line'); f.close()"
    assert code_of(written, ">&- 2>&- <&-") == 0
    assert path.read_text() == ""
