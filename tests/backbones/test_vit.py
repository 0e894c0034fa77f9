"""Vision transformers: the papers' sizes, any image and patch size, positions, pooling and drop path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchvision.models.vision_transformer import VisionTransformer

from sslcli.backbones.vit import ViT, ViTBase, ViTOptions, ViTSmall, ViTTiny, sincos_positions
from sslcli.contracts.errors import UserError
from sslcli.modules.drop_path import drop_path_rates
from sslcli.modules.roles import parameter_roles
from sslcli.testing import check_backbone


def tiny(channels: int = 3, size: int = 16, seed: int = 0, **options: Any) -> ViT:
    torch.manual_seed(seed)
    return ViTTiny.build(ViTOptions.parse({"patch_size": 4, "depth": 2, **options}), channels, size)


@pytest.mark.parametrize(
    ("cls", "millions", "heads"), [(ViTTiny, 5.5, 3), (ViTSmall, 21.7, 6), (ViTBase, 85.8, 12)], ids=str
)
def test_sizes_are_the_papers(cls: type[ViT], millions: float, heads: int) -> None:
    with torch.device("meta"):
        backbone = cls.build(ViTOptions(), 3, 224)
    assert cls.__doc__ == f"ViT-{cls.name[4:]}: {cls.dim} features, {heads} heads, 12 blocks."
    assert sum(parameter.numel() for parameter in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert len(backbone.blocks) == 12
    assert {block.attn.heads for block in backbone.blocks} == {heads}
    assert backbone.spec.feature_dim == cls.dim


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"positions": "sincos"}], ids=str)
def test_vits_pass_the_conformance_checks_and_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    check_backbone(ViTTiny, {"patch_size": 7, "depth": 2, **options}, channels=(1, 4), image_size=21)
    backbone = tiny(**options)
    backbone(torch.randn(2, 3, 8, 8)).pooled.square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert (backbone.spec.minimum_size, backbone.spec.size_multiple, backbone.spec.patch_size) == (4, 4, 4)


@pytest.mark.parametrize(
    ("cls", "stds"),
    # std of U(−a, a) is a/√3: patch projection, queries, attention's projection, MLP (vits.py of MoCo v3's authors)
    [(ViTTiny, (0.0456, 0.0722, 0.0722, 0.0456)), (ViTSmall, (0.0417, 0.0510, 0.0510, 0.0323))],
    ids=str,
)
def test_xavier_initial_weights_are_moco_v3s(cls: type[ViT], stds: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    backbone = cls.build(ViTOptions(init="xavier", depth=1, patch_size=16), 3, 32)
    block: Any = backbone.blocks[0]
    weights = (backbone.patch_projection.weight, block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight)
    for weight, std in zip(weights, stds, strict=True):
        assert isinstance(weight, torch.Tensor)
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.abs().max().item() == pytest.approx(std * math.sqrt(3), rel=0.01)
    assert 0 < backbone.cls_token.abs().max() < 1e-5
    biases = [p for name, p in backbone.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)


def test_features_are_those_of_torchvisions_transformer_with_the_same_weights() -> None:
    backbone = tiny().eval()
    other = VisionTransformer(16, 4, 2, 3, 192, 768).eval()
    other.heads = nn.Identity()
    ours = backbone.state_dict()
    names = {
        "cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "patch_embed.proj": "conv_proj",
        "norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3",
    }  # fmt: skip
    state = {}
    for key, value in ours.items():
        new = f"encoder.ln{key[4:]}" if key.startswith("norm.") else key
        for index in range(2):
            new = new.replace(f"blocks.{index}.", f"encoder.layers.encoder_layer_{index}.")
        for our_name, their_name in names.items():
            new = new.replace(our_name, their_name)
        state[new] = value
    other.load_state_dict(state, strict=True)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(backbone(x).pooled, other(x), rtol=1e-4, atol=1e-5)


def test_exported_names_and_shapes_are_timms() -> None:
    with torch.device("meta"):
        state, lines = ViTSmall.build(ViTOptions(), 3, 224).export_state()
    dim = 384
    expected = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 197, dim), "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,),
    }  # fmt: skip
    for index in range(12):
        block = {"norm1": (dim,), "norm2": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
        block |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
        for name, shape in block.items():
            expected[f"blocks.{index}.{name}.weight"] = shape
            expected[f"blocks.{index}.{name}.bias"] = shape[:1]
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert lines == ""


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (24, 24), (12, 20)])
def test_tokens_are_on_the_grid_of_an_image_of_any_size(height: int, width: int) -> None:
    found = tiny()(torch.randn(2, 3, height, width))
    assert found.grid == (height // 4, width // 4)
    assert found.tokens is not None
    assert found.tokens.shape == (2, (height // 4) * (width // 4), 192)
    assert found.pooled.shape == (2, 192)


def test_pool_selects_the_class_token_or_the_mean_of_the_patches() -> None:
    x = torch.randn(2, 3, 16, 16)
    by_token, by_mean = tiny().eval()(x), tiny(pool="mean").eval()(x)
    assert by_mean.tokens is not None
    torch.testing.assert_close(by_mean.tokens, by_token.tokens)
    torch.testing.assert_close(by_mean.pooled, by_mean.tokens.mean(dim=1))
    assert not torch.allclose(by_mean.pooled, by_token.pooled)


def test_positions_for_another_grid_are_interpolated_except_the_class_tokens() -> None:
    backbone = tiny()
    grid = backbone.pos_embed[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(2, 3), mode="bicubic", align_corners=False)
    found = backbone.positions(2, 3)
    torch.testing.assert_close(found[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(found[:, :1], backbone.pos_embed[:, :1])
    assert backbone.positions(4, 4) is backbone.pos_embed


def test_sincos_positions_follow_the_formula() -> None:
    side, dim = 3, 8
    found = sincos_positions(side, dim)[0].tolist()
    assert found[0] == [0.0] * dim
    for row in range(side):
        for column in range(side):
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert found[1 + row * side + column] == pytest.approx(expected, abs=1e-6)


def test_only_learned_positions_are_a_parameter() -> None:
    fixed, learned = tiny(positions="sincos"), tiny()
    assert "pos_embed" not in dict(fixed.named_parameters())
    assert "pos_embed" in dict(learned.named_parameters())
    assert fixed.state_dict().keys() == learned.state_dict().keys()


def test_class_token_and_positions_are_embeddings_and_norms_are_norms() -> None:
    roles = parameter_roles(tiny())
    assert roles["cls_token"] == roles["pos_embed"] == "embedding"
    assert {role for name, role in roles.items() if "norm" in name} == {"norm"}
    assert {role for name, role in roles.items() if name.endswith("bias") and "norm" not in name} == {"bias"}
    assert roles["blocks.0.attn.qkv.weight"] == roles["patch_embed.proj.weight"] == "weight"


def test_initial_weights_are_dinos() -> None:
    backbone = tiny()
    assert backbone.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert not backbone.blocks[0].attn.qkv.bias.any()
    assert {part.eps for part in backbone.modules() if isinstance(part, nn.LayerNorm)} == {1e-6}


def test_the_patch_projection_can_be_frozen() -> None:
    backbone = tiny()
    backbone.patch_projection.requires_grad_(False)
    backbone(torch.randn(2, 3, 16, 16)).pooled.sum().backward()
    assert backbone.patch_embed.proj.weight.grad is None
    assert backbone.cls_token.grad is not None


def test_drop_path_grows_with_depth() -> None:
    assert drop_path_rates(tiny(depth=3, drop_path=0.2)) == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])
    assert set(drop_path_rates(tiny())) == {0.0}


def test_drop_path_skips_branches_in_training_only() -> None:
    backbone, plain = tiny(drop_path=0.9), tiny()
    x = torch.randn(8, 3, 16, 16)
    assert torch.equal(backbone.eval()(x).pooled, plain.eval()(x).pooled)
    assert not torch.equal(backbone.train()(x).pooled, plain.train()(x).pooled)


def test_invalid_sizes_heads_and_masks_are_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.patch_size: views of 30 pixels are not a multiple of 16"):
        ViTTiny.build(ViTOptions(patch_size=16), 3, 30)
    with pytest.raises(UserError, match=r"backbone\.heads: vit_tiny has 192 dimensions, not divisible by 5 heads"):
        ViTTiny.build(ViTOptions(heads=5), 3, 32)
    with pytest.raises(UserError, match="multiples of 4, not 16×18"):
        tiny()(torch.zeros(1, 3, 16, 18))
    images, mask, token = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool), torch.zeros(192)
    with pytest.raises(UserError, match="vit_tiny got a mask without a mask_token"):
        tiny()(images, mask)
    with pytest.raises(UserError, match="vit_tiny got a mask_token without a mask"):
        tiny()(images, mask_token=token)
    with pytest.raises(UserError, match=r"needs a mask \(N, 16\) of bool, not \(1, 15\) of bool"):
        tiny()(images, mask[:, 1:], mask_token=token)
    with pytest.raises(UserError, match=r"needs a mask \(N, 16\) of bool, not \(1, 16\) of float32"):
        tiny()(images, mask.float(), mask_token=token)
    with pytest.raises(UserError, match=r"K from 1 to 16, not \(1, 17\) of int64"):
        tiny()(images, keep=torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(UserError, match="has the outputs of 1 to 2 layers, not of 3"):
        tiny(depth=2)(images, layers=3)


def test_features_are_finite_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tiny()(torch.randn(2, 3, 8, 8))
    assert torch.isfinite(found.pooled).all()


@pytest.mark.slow
def test_forward_is_one_graph_for_each_size() -> None:
    backbone, graphs = tiny(), CompileCounter()
    compiled = torch.compile(backbone, fullgraph=True, dynamic=False, backend=graphs)
    for _ in range(2):
        for size in (16, 8):
            compiled(torch.randn(2, 3, size, size)).pooled.sum().backward()
    assert graphs.frame_count == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_interpolated_positions_train_deterministically_on_a_gpu() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        backbone = tiny().cuda()
        backbone(torch.randn(2, 3, 8, 8, device="cuda")).pooled.sum().backward()
        assert backbone.pos_embed.grad is not None
    finally:
        torch.use_deterministic_algorithms(before)
