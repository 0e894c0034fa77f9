"""Prints how many kernels a step of every method launches, all and for views: `python tests/emulated/count.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import launch
from small_options import method_cases

with tempfile.TemporaryDirectory() as folder:
    found = launch.run([f"method {name}" for name in method_cases()], Path(folder))
for name in method_cases():
    kernels = found[f"method {name}"]["last_kernels"]
    print(f'    "{name}": ({sum(kernels.values())}, {kernels["views"]}),')
