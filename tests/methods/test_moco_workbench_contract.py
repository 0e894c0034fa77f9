"""The workbench `moco`: the contract of a method, its factor and its metrics, at every preset and between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from workbench_helpers import (
    EACH,
    batch,
    build,
    small,
    train,
)

from sslcli import testing
from sslcli.methods.moco import MoCo


@pytest.mark.slow
@EACH
def test_every_setting_keeps_the_contract_of_a_method(knobs: dict[str, Any]) -> None:
    testing.check_method(MoCo, small(**knobs))


@pytest.mark.slow
@EACH
def test_every_setting_is_one_graph(knobs: dict[str, Any]) -> None:
    method, graphs = build(**knobs), CompileCounter()
    torch.compiler.reset()  # else the graphs of all settings count as recompilations of one
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    train(method, 0, 3)
    torch.compiler.reset()
    assert graphs.frame_count == 1


@EACH
def test_the_factor_only_multiplies_the_loss(knobs: dict[str, Any]) -> None:
    once, thrice = build(**knobs), build(**{**knobs, "loss_factor": 3 * build(**knobs).options.loss_factor})
    one, other = once(batch()), thrice(batch())
    torch.testing.assert_close(other.loss, 3 * one.loss)
    assert one.metrics.keys() == other.metrics.keys()
    assert all(torch.equal(one.metrics[name], other.metrics[name]) for name in one.metrics)


@EACH
def test_monitors_are_reported_where_they_are_defined(knobs: dict[str, Any]) -> None:
    method = build(**knobs)
    found = method(batch()).metrics
    expected = {"pos_cos", "neg_cos"}
    if method.options.negatives != "none":
        expected |= {"contrast_top1", "contrast_top5"}
    if method.options.loss == "vic":
        expected |= {"invariance", "variance", "covariance"}
    assert set(found) == expected
    assert all(-1 <= found[name].item() <= 1 for name in ("pos_cos", "neg_cos"))
