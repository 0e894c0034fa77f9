"""`training.compile: all` reaches the transformer blocks that a method calls itself, and leaves the rest as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ConfigMaker
from run_helpers import newest
from torch import Tensor, nn

from sslcli import plugins
from sslcli.backbones.vit import ViTTiny
from sslcli.modules.transformer import TransformerBlock
from sslcli.plugins import register_file
from sslcli.training import compilation
from sslcli.training.setup import build
from sslcli.training.train import train

FOLDER = Path(__file__).parents[1] / "contract_plugins"
VIT = ["backbone={name: vit_tiny, patch_size: 8, depth: 2}", "optimizer={name: adamw, lr: 1e-3}"]
OWN = {
    "masked_autoencoder": "{name: masked_autoencoder, decoder_dim: 16, decoder_depth: 2, decoder_heads: 2}",
    "jepa": "{name: jepa, predictor_dim: 16, predictor_depth: 2, predictor_heads: 2, blocks: 2, scale: 0.25}",
}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    for name in OWN:
        register_file(FOLDER / f"{name}.py")
    yield
    plugins.clear_cache()
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """torch writes thousands of lines while it compiles."""
    caplog.set_level("WARNING", "torch")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the operations of each graph that is compiled, with a compiler that runs the graph as it is."""
    found: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    compiled = torch.compile

    def compile_modules(function: Any, **_: object) -> Any:
        is_module = isinstance(function.__self__, nn.Module)  # the views stay eager
        return compiled(function, dynamic=False, backend=backend) if is_module else function

    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", compile_modules)
    return found


def attentions(graphs: list[list[str]]) -> list[int]:
    return sorted(sum("scaled_dot_product" in name for name in graph) for graph in graphs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpointed"), [("masked_autoencoder", False), ("jepa", True)])
def test_blocks_of_a_method_are_compiled_and_agree_with_eager_code(
    tiny: ConfigMaker, tmp_path: Path, graphs: list[list[str]], name: str, checkpointed: bool
) -> None:
    overrides = [f"method={OWN[name]}", *VIT, f"backbone.gradient_checkpointing={str(checkpointed).lower()}"]
    ends = {}
    for choice in ("none", "all"):
        train(tiny(*overrides, "training.max_steps=2", f"training.compile={choice}"), tmp_path / choice)
        ends[choice] = newest(tmp_path / choice).tensors
        assert (graphs == []) == (choice == "none")
    # The backbone as a whole (checkpointed blocks are graphs within its graph), the teacher likewise, and one block of
    # the method's own, whose code they all share.
    wholes = {"masked_autoencoder": [2], "jepa": [0, 2]}[name]
    assert attentions(graphs) == sorted([1, *wholes])
    torch.testing.assert_close(ends["all"], ends["none"], rtol=1e-4, atol=1e-6)  # the names too


def test_blocks_of_a_backbone_that_a_method_calls_are_compiled(tiny: ConfigMaker, graphs: list[list[str]]) -> None:
    session = build(tiny("training.compile=all", *VIT))
    backbone = session.method.backbone
    assert isinstance(backbone, ViTTiny)
    tokens = torch.randn(2, 5, 192, requires_grad=True)  # as those of the second block: else it has code of its own
    found = backbone.blocks(tokens)
    assert attentions(graphs) == [1]
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(found, backbone.blocks(tokens))
    backbone(torch.randn(2, 3, 16, 16))
    assert attentions(graphs) == [1, 2]  # as a whole, with its blocks


def test_a_copy_is_eager_and_so_is_everything_without_compile_all(tiny: ConfigMaker, graphs: list[list[str]]) -> None:
    def compiled(module: nn.Module) -> list[type[nn.Module]]:
        return [type(part) for part in module.modules() if part._compiled_call_impl is not None]

    method = build(tiny("training.compile=all", f"method={OWN['jepa']}", *VIT)).method
    assert compiled(method).count(TransformerBlock) == 3 * 2
    assert compiled(method).count(ViTTiny) == 2
    assert compiled(copy.deepcopy(method)) == []
    assert compiled(build(tiny("training.compile=views", f"method={OWN['jepa']}", *VIT)).method) == []


def test_each_phase_has_room_for_its_own_code(tiny: ConfigMaker, graphs: list[list[str]]) -> None:
    with torch._dynamo.config.patch(recompile_limit=8):
        build(tiny("training.compile=all", "views={phases: [{until: 1}, {until: 2}, {views: {size: 24}}]}"))
        assert torch._dynamo.config.recompile_limit == 24
