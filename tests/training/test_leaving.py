"""The end of a group: nobody closes its connections while another process may still look at them."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from sslcli.training.group import _leave_together


def connection(port: int = 0) -> dist.TCPStore:
    """To a store on this machine; without a port, to a new one in this process."""
    return dist.TCPStore("127.0.0.1", port, is_master=not port, wait_for_workers=False, timeout=timedelta(seconds=20))


def test_processes_leave_when_all_of_them_can(monkeypatch: pytest.MonkeyPatch) -> None:
    store = connection()
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    left: list[str] = []

    def leave() -> None:
        _leave_together(connection(store.port), "left/1")
        left.append("first")

    first = threading.Thread(target=leave)
    first.start()
    while store.add("left/1", 0) < 1:
        time.sleep(0.01)
    time.sleep(0.1)
    assert left == []
    _leave_together(store, "left/1")
    first.join(10)
    assert left == ["first"]


def test_a_store_that_is_gone_holds_nobody() -> None:
    kept = connection()
    own = connection(kept.port)
    del kept
    _leave_together(own, "left/1")
    with pytest.raises(RuntimeError):
        own.add("left/1", 0)
