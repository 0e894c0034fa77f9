"""The end of a group: nobody closes its connections while another process may still look at them."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from sslcli.training.group import _leave_together


def test_processes_leave_when_all_of_them_can(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    left: list[str] = []

    def leave() -> None:
        _leave_together("left/1")
        left.append("first")

    first = threading.Thread(target=leave)
    first.start()
    while store.add("left/1", 0) < 1:
        time.sleep(0.01)
    time.sleep(0.1)
    assert left == []
    _leave_together("left/1")
    first.join(10)
    assert left == ["first"]


def test_a_store_that_is_gone_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslcli.training.group._LEAVING", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    _leave_together("left/1")
