"""What a snapshot copies from a pretended GPU arrives, and the host waits for it once."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results  # noqa: F401  # a fixture

pytestmark = pytest.mark.emulated

#: Three tensors, one of them in channels_last, after work that the copies must wait for.
SNAPSHOT = """
from sslcli.runs.files import snapshot
image = torch.randn(2, 3, 4, 4)
y = image.pin_memory().to("cuda", non_blocking=True).contiguous(memory_format=torch.channels_last) + 1
found = snapshot({"x": x, "y": y, "mask": mask, "cpu": cpu})
y.zero_(), x.zero_(), cpu.zero_()
assert torch.equal(found["x"], torch.arange(12.0).reshape(4, 3)) and torch.equal(found["cpu"], found["x"])
assert torch.equal(found["y"], image + 1) and found["y"].is_contiguous() and found["y"].is_pinned()
assert found["mask"].tolist() == [False, False, True, True]
"""


@pytest.mark.parametrize("case", [SNAPSHOT])
def test_a_snapshot_waits_once(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert [(kind, count) for _, kind, _, count in results[case]["waits"]] == [("synchronize of a stream", 1)]
    assert results[case]["races"] == []
