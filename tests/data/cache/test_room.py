from __future__ import annotations

from pathlib import Path

import pytest

from sslcli.data.cache import room
from sslcli.data.cache.room import available_memory, free_disk, size_text


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in which a Linux machine with 8,000 kB to spare tells of its memory; no container."""
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(room, "_MOUNT", tmp_path)
    (tmp_path / "groups").write_text("0::/\n")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\nHugePages_Free:  0\n")
    return tmp_path


def limit(machine: Path, most: str) -> None:
    (machine / "memory.max").write_text(f"{most}\n")
    (machine / "memory.current").write_text("700000\n")
    (machine / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 7\n")


def test_memory_is_what_the_machine_can_spare(machine: Path) -> None:
    assert available_memory() == 8000 * 1024


def test_memory_is_what_the_container_may_take_where_that_is_less(machine: Path) -> None:
    limit(machine, "1000000")
    assert available_memory() == 600_000
    limit(machine, "100000")
    assert available_memory() == 0
    limit(machine, "100000000")
    assert available_memory() == 8000 * 1024
    limit(machine, "max")
    assert available_memory() == 8000 * 1024


def test_the_tightest_of_the_groups_around_a_process_counts(machine: Path) -> None:
    (machine / "groups").write_text("0::/batch/job_7\n")
    inner = machine / "batch" / "job_7"
    inner.mkdir(parents=True)
    limit(inner.parent, "1000000")
    limit(inner, "max")
    assert available_memory() == 600_000
    limit(inner, "800000")
    assert available_memory() == 400_000


@pytest.mark.parametrize("path", ["/", "/docker/3f7a"])  # of the second one a container sees only the outermost folder
def test_the_limits_of_version_1_count(machine: Path, path: str) -> None:
    (machine / "groups").write_text(f"9:name=systemd:/\n4:cpu,memory:{path}\n0::/\n")
    folder = machine / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000000\n")
    (folder / "memory.usage_in_bytes").write_text("700000\n")
    (folder / "memory.stat").write_text("inactive_file 5\ntotal_inactive_file 300000\n")
    assert available_memory() == 600_000


def test_a_system_without_control_groups_has_no_limit(machine: Path) -> None:
    (machine / "groups").unlink()
    assert available_memory() == 8000 * 1024


def test_that_a_machine_does_not_tell_is_not_that_nothing_is_left(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert available_memory() is None


def test_the_disk_of_a_folder_that_is_still_to_be_made_is_known(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 kB"), (53_900, "53.9 kB"), (1_000_000, "1.0 MB"), (2_449_000_000, "2.4 GB"), (335 * 10**10, "3.4 TB")],
)
def test_sizes_are_said_in_decimal_units(count: int, text: str) -> None:
    assert size_text(count) == text
