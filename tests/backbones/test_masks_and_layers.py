"""Backbones that hide patches, return their last layers, and the pixels of their last map as tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslcli.backbones.cifar_resnet import CIFARResNet20
from sslcli.backbones.resnet import ResNet18, ResNet50
from sslcli.backbones.torchvision import TorchvisionModels
from sslcli.backbones.vit import ViT, ViTTiny
from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.modules.masks import random_keep, replace_masked, take

SIDE, LENGTH = 32, 16


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = drawn(0, 3, 3, SIDE, SIDE)
MASK = drawn(1, 3, LENGTH) > 0.3
KEEP = drawn(2, 3, LENGTH).argsort(1)[:, :5]


def tiny(**options: Any) -> ViT:
    torch.manual_seed(0)
    backbone = ViTTiny.build(ViTTiny.Options.parse({"patch_size": 8, "depth": 3, **options}), 3, SIDE)
    return backbone.eval()


def test_a_mask_and_a_subset_are_the_formula() -> None:
    """Embeddings, replaced where hidden, plus positions; then the kept ones; then blocks and norm."""
    backbone, token = tiny(), drawn(3, 192)
    with torch.no_grad():
        tokens = backbone.patch_embed(IMAGES).flatten(2).transpose(1, 2).clone()
        tokens[MASK] = token
        tokens = tokens + backbone.pos_embed[:, 1:]
        tokens = torch.stack([each[keep] for each, keep in zip(tokens, KEEP, strict=True)])
        first = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(3, -1, -1)
        expected = backbone.norm(backbone.blocks(torch.cat([first, tokens], 1)))
        found = backbone(IMAGES, MASK, mask_token=token, keep=KEEP)
    torch.testing.assert_close(found.tokens, expected[:, 1:])
    torch.testing.assert_close(found.pooled, expected[:, 0])
    assert found.grid is None


@pytest.mark.parametrize("options", [{}, {"positions": "sincos"}, {"pool": "mean"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("side", [SIDE, 48])
def test_hidden_patches_do_not_count(options: dict[str, Any], side: int) -> None:
    backbone, length = tiny(**options).train(), (side // 8) ** 2
    images, mask, token = drawn(4, 2, 3, side, side), drawn(5, 2, length) > 0, nn.Parameter(drawn(6, 1, 1, 192))
    pixels = mask.view(2, 1, side // 8, side // 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(pixels, drawn(7, 2, 3, side, side), images)
    first, second = (backbone(x, mask, mask_token=token).pooled for x in (images, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, backbone(images).pooled)
    gradients = torch.autograd.grad(first.square().sum(), [token, *backbone.blocks.parameters()])
    assert all(bool(each.isfinite().all()) for each in gradients)
    assert bool(gradients[0].any())
    keep = torch.stack([row.nonzero()[:3, 0] for row in ~mask])
    first, second = (backbone(x, keep=keep) for x in (images, other))
    assert torch.equal(first.pooled, second.pooled)
    assert first.tokens is not None
    assert first.tokens.shape == (2, 3, 192)


def test_bf16_takes_masks_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tiny()(IMAGES, MASK, mask_token=drawn(3, 192), keep=KEEP, layers=2)
    assert bool(found.pooled.isfinite().all())
    assert len(found.layers) == 2


def test_the_last_layers_are_the_outputs_of_blocks_behind_the_norm() -> None:
    backbone, outputs = tiny(gradient_checkpointing=True), []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(backbone.norm(output)))
    found = backbone.train()(IMAGES, layers=3)
    assert len(found.layers) == len(outputs) == 3
    for (cls, tokens), expected in zip(found.layers, outputs, strict=True):
        torch.testing.assert_close(cls, expected[:, 0])
        torch.testing.assert_close(tokens, expected[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_networks_take_masks(precision: str) -> None:
    backbone, token = tiny(), drawn(3, 192)
    compiled = torch.compile(backbone, fullgraph=True)
    for arguments in ({"mask": MASK, "mask_token": token}, {"keep": KEEP}, {"layers": 2}):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found, expected = compiled(IMAGES, **arguments), backbone(IMAGES, **arguments)
        close = {"rtol": 1e-4, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.1}
        torch.testing.assert_close(found.pooled.float(), expected.pooled.float(), **close)


@pytest.mark.parametrize(
    ("build", "stages"),
    [(lambda: ResNet18.build(ResNet18.Options(width=8, stem="small"), 3, SIDE), 4),
     (lambda: ResNet50.build(ResNet50.Options(width=8), 3, SIDE), 4),
     (lambda: CIFARResNet20.build(CIFARResNet20.Options(width=8), 3, SIDE), 3)],
    ids=["resnet18", "resnet50", "cifar_resnet20"],
)  # fmt: skip
def test_the_tokens_of_a_resnet_are_its_last_map(build: Any, stages: int) -> None:
    backbone: Backbone = build().eval()
    with torch.no_grad():
        found = backbone(torch.cat([IMAGES, IMAGES], 3), layers=stages)  # twice as wide as high
    assert found.tokens is not None
    assert found.grid is not None
    assert found.grid[1] == 2 * found.grid[0]
    assert found.tokens.shape == (3, found.grid[0] * found.grid[1], backbone.spec.feature_dim)
    torch.testing.assert_close(found.tokens.mean(1), found.pooled)
    lengths = [tokens.shape[1] for _, tokens in found.layers]
    assert lengths == [found.tokens.shape[1] * 4**each for each in reversed(range(stages))]
    with pytest.raises(UserError, match=f"outputs of 1 to {stages} layers, not of 5"):
        backbone(IMAGES, layers=5)
    with pytest.raises(UserError, match="needs a vision transformer, such as vit_small"):
        backbone(IMAGES, keep=KEEP)


#: One of every way to pool.
POOLED = [
    "alexnet", "vgg11", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5",
    "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "googlenet", "inception_v3",
    "maxvit_t",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLED)
def test_the_tokens_of_torchvisions_networks_are_the_map_that_they_pool(name: str) -> None:
    cls = TorchvisionModels.get(name)
    side = 224 if name == "maxvit_t" else 96
    backbone = cls.build(cls.Options(), 3, side).eval()
    with torch.no_grad():
        found = backbone(drawn(0, 2, 3, side, side))
    assert found.tokens is not None
    assert found.grid is not None
    assert found.tokens.shape[1] == found.grid[0] * found.grid[1]
    mean = found.tokens.mean(1)
    head = backbone.network.classifier if name in ("mobilenet_v3_small", "convnext_tiny", "maxvit_t") else None
    if head is not None:  # what follows the pooling, up to the classifier
        mean = head(mean if name == "mobilenet_v3_small" else mean[..., None, None])
    torch.testing.assert_close(mean, found.pooled, rtol=1e-4, atol=1e-4)


def test_torchvisions_vit_takes_masks_and_returns_layers() -> None:
    cls = TorchvisionModels.get("vit_b_32")
    backbone = cls.build(cls.Options(), 3, 64).eval()
    images, token = drawn(0, 2, 3, 64, 64), drawn(1, 768)
    mask = torch.tensor([[True, False, False, False], [False, True, True, False]])
    with torch.no_grad():
        plain = backbone(images, layers=2)
        expected = backbone.network(images)
        assert torch.equal(plain.pooled, expected)
        assert plain.grid == (2, 2)
        assert len(plain.layers) == 2
        torch.testing.assert_close(plain.layers[-1][0], plain.pooled)
        found = backbone(images, keep=torch.tensor([[3, 1], [0, 2]]))
        assert found.tokens is not None
        assert found.tokens.shape == (2, 2, 768)
        assert not torch.equal(backbone(images, mask, mask_token=token).pooled, expected)


def test_a_random_subset_and_its_mask_are_the_smallest_numbers() -> None:
    uniform = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(0))
    keep, mask = random_keep(uniform, 4)
    for row, kept, hidden in zip(uniform, keep, mask, strict=True):
        assert kept.tolist() == sorted(row.argsort()[:4].tolist())
        assert (~hidden).nonzero()[:, 0].tolist() == kept.tolist()


def test_replaced_and_taken_tokens() -> None:
    tokens, token = drawn(0, 3, LENGTH, 4), drawn(1, 1, 1, 4)
    found = replace_masked(tokens, MASK, token)
    assert torch.equal(found[MASK], token[0].expand(int(MASK.sum()), -1))
    assert torch.equal(found[~MASK], tokens[~MASK])
    assert torch.equal(take(tokens, KEEP), torch.stack([each[keep] for each, keep in zip(tokens, KEEP, strict=True)]))
