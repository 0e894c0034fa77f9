"""Starts `cases.py` in a process that pretends to have GPUs: with a small library loaded before torch, built here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
#: Its C++ names are those of torch builds for CUDA, which the shim stands in front of.
BUILT_FOR_CUDA = torch.version.cuda is not None


@cache
def shim() -> Path:
    """Builds the library; skips the test where it cannot."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None or not BUILT_FOR_CUDA:
        pytest.skip("pretending a GPU needs Linux, a C compiler, and a build of torch for CUDA")
    path = Path(tempfile.mkdtemp(prefix="pretended-")) / "libcuda.so.1"
    source = HERE / "pretended" / "shim.c"
    # By its soname torch finds it when it looks for the driver.
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(path), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return path


def run(names: Sequence[str], out: Path, seconds: float = 1200) -> dict[str, dict[str, Any]]:
    """Runs cases in one process; returns what each printed, by name.

    A case that the process did not live to run has only an `error`: the end of its stderr.
    """
    library = str(shim())
    environment = {
        **os.environ, "LD_PRELOAD": library, "PRETENDED_CUDA": library, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [sys.executable, str(HERE / "cases.py"), str(out), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    lost = {"error": f"the process ended with {done.returncode}: {done.stderr[-2000:]}"}
    return dict.fromkeys(names, lost) | {line["case"]: line for line in lines}


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of the cases of all tests of the module that are to be run, from one process, by the parameter `case`."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.module is request.module]
    names = [call.params["case"] for call in calls if call is not None and "case" in call.params]
    return run(list(dict.fromkeys(names)), tmp_path_factory.mktemp("runs"))


def waits(result: dict[str, Any]) -> list[str]:
    """What the host waited for in steps but the first, which creates what lasts: `item at losses/dino.py:70 < …`."""
    assert "error" not in result, result["error"]
    return [f"{kind} at {place}" for section, kind, place, _ in result["waits"] if section == "step"]
