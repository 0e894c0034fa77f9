"""How many kernels torch's compiler makes of SimCLR's views and loss on an H100."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launch import results  # noqa: F401  # a fixture

VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.slow,
    pytest.mark.skipif(VERSION < (2, 9), reason="calls the compiler's internals as they are from torch 2.9 on"),
]

#: Most kernels of its own, and calls of libraries (matrix products): for both views together, and for the loss with its
#: gradients. Eager, the views are 123 kernels.
MOST = {"lowered views": (34, 2), "lowered loss": (11, 3)}


@pytest.mark.parametrize("case", MOST)
def test_compiled_code_has_few_kernels(case: str, results: dict[str, Any]) -> None:  # noqa: F811
    pytest.importorskip("triton")
    result = results[case]
    assert "error" not in result, result["error"]
    own, library = MOST[case]
    assert 0 < result["own"] <= own
    assert 0 < result["library"] <= library
