"""Gradient checkpointing of the built-in and torchvision's vision transformers: the same numbers from less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ConfigMaker
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from sslcli.contracts.backbone import Backbone, Features
from sslcli.modules.gradient_checkpointing import CheckpointedBlocks
from sslcli.plugins import load
from sslcli.runs.checkpoint import list_checkpoints, read_checkpoint
from sslcli.training.train import train

#: Each with four blocks or more, and drop-path or dropout that draws.
OPTIONS: dict[str, dict[str, Any]] = {"vit_tiny": {"patch_size": 4, "depth": 4, "drop_path": 0.5}}
#: torchvision's smallest has 86 million weights.
KINDS = ["vit_tiny", pytest.param("torchvision/vit_b_16", marks=pytest.mark.slow)]
SIZE = 32


def pair(name: str = "vit_tiny", **options: Any) -> tuple[Backbone, Backbone]:
    """The same backbone without and with gradient checkpointing."""
    cls, found = load("backbones", name), []
    for expected in (False, True):
        torch.manual_seed(0)
        values = {**OPTIONS.get(name, {}), **options, "gradient_checkpointing": expected}
        backbone = cls.build(cls.Options.parse(values), 3, SIZE)
        for part in backbone.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.1
        found.append(backbone)
    return found[0], found[1]


def images(device: str = "cpu") -> Tensor:
    return torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)


def passed(backbone: nn.Module, x: Tensor) -> tuple[Features, dict[str, Tensor]]:
    """Features and gradients, from the same draws."""
    torch.manual_seed(3)
    found = backbone(x)
    found.pooled.float().square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    for parameter in backbone.parameters():
        parameter.grad = None
    return found, gradients


def saved_bytes(backbone: Backbone, x: Tensor) -> int:
    """What a forward pass keeps for the backward one, without the weights."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = backbone(x)
    found = sum(kept.values())
    del out
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_features_and_gradients_are_bitwise_the_same(name: str, autocast: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain, checkpointed = (passed(backbone.train(), images()) for backbone in pair(name))
    assert torch.equal(plain[0].pooled, checkpointed[0].pooled)
    if plain[0].tokens is not None:
        assert torch.equal(plain[0].tokens, checkpointed[0].tokens)
    assert_equal(checkpointed[1], plain[1])


def test_the_draws_of_drop_path_matter_here() -> None:
    """Without them, the test above would not see that they are repeated."""
    backbone = pair()[1].train()
    first = backbone(images()).pooled
    assert not torch.equal(first, backbone(images()).pooled)


def test_draws_after_a_backward_pass_are_those_of_a_run_without() -> None:
    draws = []
    for backbone in pair():
        passed(backbone.train(), images())
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", KINDS)
def test_less_than_half_as_much_is_kept_for_the_backward_pass(name: str) -> None:
    plain, checkpointed = (saved_bytes(backbone.train(), images()) for backbone in pair(name))
    assert 0 < checkpointed < plain / 2


def test_each_block_is_run_again_in_the_backward_pass_and_only_then() -> None:
    backbone, count = pair()[1].train(), 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    for block in backbone.blocks:
        block.register_forward_pre_hook(add)
    loss = backbone(images()).pooled.sum()
    assert count == 4
    loss.backward()
    assert count == 8


@pytest.mark.parametrize("mode", ["evaluation", "no_grad"])
def test_nothing_is_checkpointed_where_nothing_is_trained(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = pair()[1].train(mode == "no_grad")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr("sslcli.modules.gradient_checkpointing.checkpoint", refuse)
    with torch.set_grad_enabled(mode == "evaluation"):
        assert backbone(images()).pooled.isfinite().all()
    with pytest.raises(AssertionError, match="checkpointed"):
        backbone.train()(images())


@pytest.mark.parametrize("name", KINDS)
def test_names_of_weights_and_export_are_as_without(name: str) -> None:
    plain, checkpointed = pair(name)
    assert_equal(dict(checkpointed.state_dict()), dict(plain.state_dict()))
    assert checkpointed.export_state()[1] == plain.export_state()[1]
    assert_equal(checkpointed.export_state()[0], plain.export_state()[0])
    assert torch.equal(copy.deepcopy(checkpointed).eval()(images()).pooled, plain.eval()(images()).pooled)


def test_torchvision_s_transformers_have_it_and_its_other_models_do_not() -> None:
    cls = load("backbones", "torchvision/vit_b_16")
    with torch.device("meta"):
        backbone = cls.build(cls.Options(gradient_checkpointing=True), 3, SIZE)
    assert isinstance(backbone.network.encoder.layers, CheckpointedBlocks)
    assert "gradient_checkpointing" not in load("backbones", "torchvision/vgg11").Options.model_fields


def test_a_run_may_resume_with_it_and_stays_bitwise_the_same(tiny: ConfigMaker, tmp_path: Path) -> None:
    vit = "backbone={name: vit_tiny, patch_size: 8, depth: 2, drop_path: 0.3, gradient_checkpointing: %s}"
    messages: list[str] = []
    train(tiny(vit % "false"), tmp_path / "whole", tell=messages.append)
    train(tiny(vit % "false", "training.max_steps=5"), tmp_path / "parts", tell=messages.append)
    train(tiny(vit % "true"), tmp_path / "parts", resume=True, tell=messages.append)
    assert not [line for line in messages if "gradient_checkpointing" in line]
    whole, parts = (
        read_checkpoint(list_checkpoints(tmp_path / kind / "checkpoints")[0]) for kind in ("whole", "parts")
    )
    assert whole.step == parts.step == 12
    assert_equal(parts.tensors, whole.tensors)


@pytest.mark.slow
def test_forward_is_one_graph_with_the_same_gradients() -> None:
    plain, checkpointed = (backbone.train() for backbone in pair(drop_path=0.0))
    graphs = CompileCounter()
    torch.compile(checkpointed, fullgraph=True, dynamic=False, backend=graphs)(images())
    assert graphs.frame_count == 1
    compiled = torch.compile(checkpointed, fullgraph=True, dynamic=False, backend="aot_eager")
    found, expected = passed(compiled, images()), passed(plain, images())
    torch.testing.assert_close(found[0].pooled, expected[0].pooled)
    assert len(found[1]) == len(expected[1])
    for a, b in zip(found[1].values(), expected[1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ddp_reduces_the_same_gradients(tmp_path: Path) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    plain, checkpointed = (backbone.train() for backbone in pair())
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        module = DistributedDataParallel(checkpointed, gradient_as_bucket_view=True)
        for _ in range(2):
            found = passed(module, images())[1]
            module.zero_grad(set_to_none=True)
    finally:
        distributed.destroy_process_group()
    assert_equal({name.removeprefix("module."): value for name, value in found.items()}, passed(plain, images())[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_holds_less_and_gradients_stay() -> None:
    found, held = [], []
    for backbone in pair(depth=8):
        backbone.cuda().train()
        x = images("cuda").repeat(16, 1, 1, 1)
        passed(backbone, x)  # what libraries take once
        before = torch.cuda.memory_allocated()
        out = backbone(x)
        held.append(torch.cuda.memory_allocated() - before)
        del out
        found.append(passed(backbone, x)[1])
    assert held[1] < held[0] / 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_keeping_the_random_state_does_not_wait_for_a_gpu() -> None:
    backbone, x = pair()[1].cuda().train(), images("cuda")
    passed(backbone, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        passed(backbone, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
