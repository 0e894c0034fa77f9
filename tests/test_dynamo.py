"""torch's compiler is imported by whoever compiles, and the program's start goes without what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from conftest import TINY

PROGRAM = """
import sys
from sslcli.cli.main import main
sys.argv = ["ssl", "train", "tiny.yaml", "training.max_steps=4", "callbacks.knn={}", "--output", "run"]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end
for module in ("torchvision", "torch._dynamo.utils", "sympy", "torch.utils.tensorboard"):
    assert module not in sys.modules, module

import torch
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
# A plugin's functions are no business of the stand-in: they get the real module.
assert not hasattr(sys.modules["torch._dynamo"], "__file__")
@torch._dynamo.disable
def own(x):
    return x + 1
assert own(1) == 2
assert hasattr(torch._dynamo, "__file__")
double = torch.compile(lambda x: x * 2, backend="eager", fullgraph=True)
assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
assert sys.modules["torch._dynamo"] is torch._dynamo and hasattr(torch._dynamo, "__file__")
assert all(not hasattr(wrapped.__wrapped__, "__dynamo_disable") for wrapped in [torch.optim.Optimizer.add_param_group])
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
assert "dynamo" in torch.optim.Optimizer.add_param_group.__wrapped__.__dict__["__dynamo_disable"].__code__.co_filename
"""


def test_a_run_imports_neither_torchs_compiler_nor_torchvision_and_compiling_afterwards_works(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
