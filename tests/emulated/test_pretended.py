"""The pretended GPU itself: what it must notice, and what it must not. A snapshot shares its process."""

from __future__ import annotations

from typing import Any

import pytest
from launch import results  # noqa: F401  # a fixture

pytestmark = pytest.mark.emulated

#: Lines, and why the host waits. `x` (4, 3) and its `mask` are on the device, `cpu` (4, 3) is not.
WAIT = {
    "x.sum().item()": "item",
    "float(x[0, 0])": "item",
    "if x[0, 0] > 0: pass": "item",
    "x.tolist()": "tolist",
    "x.nonzero()": "nonzero",
    "x[mask]": "a mask as index",
    "x[mask] = x[:2] * 2": "a mask as index",
    "x.masked_select(x > 2)": "masked_select",
    "torch.unique(x)": "unique",
    "torch.bincount(mask.long())": "bincount",
    "torch.equal(x, x)": "equal",
    "torch.repeat_interleave(x, mask.long(), dim=0)": "repeat_interleave without output_size",
    "torch.linalg.eigvalsh(x.T @ x)": "eigh",
    "torch.linalg.svdvals(x)": "svd",
    "x.cpu()": "a copy from the device",
    "cpu.to('cuda')": "a copy to the device, unpinned",
    "cpu.to('cuda', non_blocking=True)": "a copy to the device, unpinned",
    "cpu.pin_memory().to('cuda')": "a copy to the device",
    "x.copy_(cpu)": "a copy to the device, unpinned",
    "torch.tensor([1.0, 2.0], device='cuda')": "a copy to the device, unpinned",
    "x[torch.tensor([1, 2])]": "an index on the CPU",
    "torch.where(x > 1, x, torch.tensor(0.0))": "where copies a number from the CPU",
    "torch.cuda.synchronize()": "synchronize of the device",
    "torch.cuda.current_stream().synchronize()": "synchronize of a stream",
}
FREE = [
    "x.sum() * 2 + x.mean()",
    "torch.where(mask.unsqueeze(1), x, 0.0)",
    "x.index_select(0, torch.arange(2, device='cuda'))",
    "x[torch.arange(2, device='cuda')]",
    "x.masked_fill_(x > 2, 0.0)",
    "x.add_(1, alpha=0.5).clamp_(0, 1)",
    "torch.full((), 3.0, device='cuda')",
    "cpu.pin_memory().to('cuda', non_blocking=True)",
    "x.to('cpu', non_blocking=True)",
    "torch.repeat_interleave(x, mask.long(), dim=0, output_size=2)",
    "x * torch.tensor(2.0)",
    "torch._foreach_norm([x, x])",
    "x.topk(2).values.sort()",
    "torch.cuda.Event().record()",
]
#: Lines that a GPU refuses.
REFUSED = ["x + cpu", "torch.cat([x, cpu])", "cpu[torch.arange(2, device='cuda')]", "x.numpy()", "x.addmm(x, cpu.T)",
           "torch.lerp(x, x, cpu)", "x + torch.ones(4, 3, device='cuda:1')", "x.pin_memory()"]  # fmt: skip
#: Lines, their kernels, and whether a multi-tensor call ran tensor by tensor.
KERNELS = {
    "x + 1": (1, False),
    "x.view(3, 4).T.unsqueeze(0)": (0, False),
    "torch._foreach_add_([x.clone() for _ in range(20)], 1.0)": (21, False),
    "torch._foreach_mul_([x.clone() for _ in range(20)], [x[0, 0]] * 20)": (40, True),
    "torch._foreach_mul([x, x.T.contiguous().T], [x, x])": (3, True),
    "torch._foreach_norm([x] * 20)": (2, False),
    "torch.nn.functional.batch_norm(x, None, None, training=True)": (2, False),
}
#: Work on a second stream.
RACES = {
    "s = torch.cuda.Stream()\nwith torch.cuda.stream(s): x + 1": 1,
    "s = torch.cuda.Stream()\ns.wait_stream(torch.cuda.current_stream())\nwith torch.cuda.stream(s): y = x + 1\n"
    "torch.cuda.current_stream().wait_stream(s)\ny.record_stream(s)\ny + 1": 0,
}
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


@pytest.mark.parametrize("case", WAIT)
def test_what_waits_is_noticed(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert [kind for _, kind, _, _ in results[case]["waits"]] == [WAIT[case]]


@pytest.mark.parametrize("case", FREE)
def test_what_does_not_wait_is_not_noticed(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert results[case]["waits"] == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gpu_refuses_is_refused(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "device" in results[case]["error"] or "cuda" in results[case]["error"]


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_are_counted(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    result = results[case]
    assert "error" not in result, result["error"]
    assert (sum(count for *_, count in result["kernels"]), bool(result["slow"])) == KERNELS[case]


@pytest.mark.parametrize("case", RACES)
def test_memory_used_on_a_stream_that_did_not_wait_is_noticed(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert len(results[case]["races"]) == RACES[case]


@pytest.mark.parametrize("case", [SNAPSHOT])
def test_a_snapshot_waits_once(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    assert "error" not in results[case], results[case]["error"]
    assert [(kind, count) for _, kind, _, count in results[case]["waits"]] == [("synchronize of a stream", 1)]
    assert results[case]["races"] == []
