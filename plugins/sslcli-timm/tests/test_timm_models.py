"""timm's models keep sslcli's contract, are trained, exported and loaded back by timm alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

timm = pytest.importorskip("timm")
models = pytest.importorskip("sslcli_timm.models")

import sslcli  # noqa: E402
from sslcli.contracts.data import DataInfo  # noqa: E402
from sslcli.contracts.errors import UserError  # noqa: E402
from sslcli.evaluation.feature import FeatureBackbone  # noqa: E402
from sslcli.modules.depth import parameter_depths  # noqa: E402
from sslcli.runs.teacher import Teacher  # noqa: E402
from sslcli.runs.weights import start_from  # noqa: E402
from sslcli.testing import check_backbone, check_provider  # noqa: E402

#: A network of each kind: plain, with a patch grid, with windows, with a head behind the pooling.
SMALL: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet10t", 32, {}),
    ("vit_tiny_patch16_224", 32, {"arguments": {"patch_size": 8, "depth": 2}}),
    ("swin_tiny_patch4_window7_224", 32, {"arguments": {"depths": [1, 1], "embed_dim": 24, "num_heads": [2, 2]}}),
    ("mobilenetv3_small_050", 32, {}),
]


def build(name: str, size: int, channels: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    cls = models.TimmModels.get(name)
    return cls.build(cls.Options.parse(options), channels, size)


def test_the_provider_lists_what_timm_lists() -> None:
    check_provider(models.TimmModels)
    assert "vit_small_patch16_224" in models.TimmModels.names()
    assert models.TimmModels.get("resnet18") is models.TimmModels.get("resnet18")


@pytest.mark.parametrize(("name", "size", "options"), SMALL)
def test_every_kind_of_model_keeps_the_contract(name: str, size: int, options: dict[str, Any]) -> None:
    check_backbone(models.TimmModels.get(name), options, image_size=size)


@pytest.mark.parametrize(("name", "size", "options"), SMALL)
def test_the_exported_lines_give_the_same_features_with_timm_alone(
    name: str, size: int, options: dict[str, Any]
) -> None:
    backbone = build(name, size, **options).eval()
    state, lines = backbone.export_state()
    assert "sslcli" not in lines
    scope: dict[str, Any] = {"state": {key: value.clone() for key, value in state.items()}}
    exec(lines, scope)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(scope["model"].eval()(images), backbone(images).pooled, rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_has_tokens_and_takes_smaller_crops() -> None:
    backbone = build("vit_tiny_patch16_224", 64, arguments={"depth": 1}).eval()
    assert (backbone.spec.patch_size, backbone.spec.minimum_size, backbone.spec.size_multiple) == (16, 16, 16)
    assert backbone.patch_projection is backbone.network.patch_embed.proj
    with torch.no_grad():
        large, small = backbone(torch.randn(2, 3, 64, 64)), backbone(torch.randn(2, 3, 32, 32))
    assert (large.grid, tuple(large.tokens.shape)) == ((4, 4), (2, 16, 192))
    assert (small.grid, tuple(small.tokens.shape)) == ((2, 2), (2, 4, 192))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("vit_tiny_patch16_224", {}), ("vit_small_patch14_reg4_dinov2", {"depth": 2}), ("deit3_small_patch16_224", {})],
    ids=["class token", "registers", "positions without the class token"],
)
def test_hidden_patches_do_not_count(name: str, arguments: dict[str, Any]) -> None:
    backbone = build(name, 56, arguments={"patch_size": 14, "depth": 2, **arguments}).eval()
    images, width = torch.randn(2, 3, 56, 56), backbone.spec.feature_dim
    mask, token = torch.arange(16).expand(2, -1) % 3 == 0, torch.randn(width)
    pixels = mask.view(2, 1, 4, 4).repeat_interleave(14, 2).repeat_interleave(14, 3)
    other = torch.where(pixels, torch.randn_like(images), images)
    keep = torch.stack([row.nonzero()[:, 0].flip(0) for row in ~mask])
    with torch.no_grad():
        first, second = (backbone(x, mask, mask_token=token, layers=2) for x in (images, other))
        assert torch.equal(first.pooled, second.pooled)
        assert [tuple(tokens.shape) for _, tokens in first.layers] == [(2, 16, width)] * 2
        assert not torch.equal(first.pooled, backbone(images).pooled)
        first, second = (backbone(x, keep=keep) for x in (images, other))
        assert torch.equal(first.tokens, second.tokens)
        every = torch.arange(16).expand(2, -1)
        torch.testing.assert_close(backbone(images, keep=every).pooled, backbone(images).pooled)


def test_an_evaluation_can_use_the_class_tokens_of_the_last_blocks() -> None:
    backbone = build("vit_tiny_patch16_224", 32).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens: list[torch.Tensor] = []
    for block in backbone.network.blocks[-2:]:
        block.register_forward_hook(lambda module, given, out: tokens.append(backbone.network.norm(out)[:, 0]))
    with torch.no_grad():
        found = FeatureBackbone(backbone, "cls_last2", 32)(images).pooled
    torch.testing.assert_close(found, torch.cat(tokens[-2:], dim=1))


def test_gradient_checkpointing_gives_the_same_with_masks() -> None:
    found = []
    for checkpointing in (False, True):
        backbone = build("vit_tiny_patch16_224", 32, arguments={"patch_size": 8, "depth": 2},
                         gradient_checkpointing=checkpointing)  # fmt: skip
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        backbone.train()(images, keep=torch.arange(5).expand(2, -1)).pooled.square().sum().backward()
        found.append(backbone.network.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(found[0], found[1])


def test_a_vision_transformer_has_the_layers_of_maes_learning_rates() -> None:
    depths = parameter_depths(build("vit_tiny_patch16_224", 32, arguments={"depth": 2}))
    assert {depths[f"network.{name}"] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0}
    assert (depths["network.blocks.0.norm1.bias"], depths["network.blocks.1.mlp.fc2.weight"]) == (1, 2)
    assert depths["network.norm.weight"] == 3
    assert build("mobilenetv3_small_050", 32).layer_modules() == ()


def test_a_network_of_one_size_says_so() -> None:
    assert build("mixer_s32_224", 64).spec.minimum_size == 64


def test_published_weights_are_timm_s_and_loaded_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = timm.create_model, []

    def fetch(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        asked.append(pretrained)
        torch.manual_seed(5)
        return real(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", fetch)
    for pretrained in (False, True):
        backbone = build("resnet10t", 32, pretrained=pretrained)
        start_from(backbone, "timm/resnet10t", backbone.options)
        assert asked.count(True) == (1 if pretrained else 0)


def test_a_teacher_by_name_has_its_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def fetch(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        torch.manual_seed(5 if pretrained else 6)
        return real(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", fetch)
    data = DataInfo("test", 3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    teacher = Teacher("timm/vit_tiny_patch16_224", data, 32, {"arguments": {"patch_size": 8, "depth": 2}})
    published = fetch("vit_tiny_patch16_224", pretrained=True, **teacher.backbone.arguments).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).pooled, published(images), rtol=1e-4, atol=1e-4)
        assert teacher(images).tokens.shape == (2, 16, 192)


def test_weights_that_cannot_be_loaded_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("resnet10t", 32, pretrained=True)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no network\nhere")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"weights of resnet10t cannot be loaded \(no network here\): start without$"):
        backbone.published_state()


@pytest.mark.parametrize(
    "values", [{"pretrained": True, "weights": "a.safetensors"}, {"arguments": {"in_chans": 1}}], ids=str
)
def test_options_that_contradict_are_refused_with_the_config(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"not from both|arguments\.in_chans is set by sslcli"):
        models.TimmOptions.parse(values)


def test_what_a_model_does_not_take_is_one_line() -> None:
    with pytest.raises(UserError, match=r"timm/resnet10t cannot be built .*'no_such'") as caught:
        build("resnet10t", 32, arguments={"no_such": 1})
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="timm/vit_tiny_patch16_224 cannot"):
        build("vit_tiny_patch16_224", 8)


def test_a_run_is_trained_evaluated_exported_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "method: {name: simclr, projector: {output_dim: 8}}\n"
        "backbone: {name: timm/vit_tiny_patch16_224, arguments: {patch_size: 8, depth: 1}}\n"
        "data: {name: shapes, count: 32, size: 16}\n"
        "optimizer: {name: sgd, lr: 0.05}\n"
        "schedule: {name: constant}\n"
        "training: {epochs: 1, batch_size: 16, precision: fp32, device: cpu}\n"
        "callbacks: {knn: null, tensorboard: null, progress: null}\n"
    )
    run = sslcli.train(config, output=tmp_path / "run")
    assert run.step == 2
    assert 0 <= sslcli.evaluate(run, "knn", {"k": [3]}).metrics["top1"] <= 1
    exported = sslcli.export(run, "backbone", tmp_path / "b.safetensors")
    assert "sslcli" not in exported.how_to_load.replace(str(tmp_path), "")
    scope: dict[str, Any] = {}
    exec(exported.how_to_load, scope)
    images = torch.randn(2, 3, 16, 16)
    ours = sslcli.load_backbone(exported.path)
    with torch.no_grad():
        torch.testing.assert_close(scope["model"].eval()(images), ours(images).pooled, rtol=1e-5, atol=1e-5)


VIT: dict[str, Any] = {"arguments": {"patch_size": 4, "depth": 3}, "drop_path_rate": 0.5, "drop_rate": 0.1}


def test_gradient_checkpointing_gives_the_same_gradients_from_less_memory() -> None:
    kept, gradients = [], []
    for wanted in (False, True):
        backbone = build("vit_tiny_patch16_224", 32, gradient_checkpointing=wanted, **VIT).train()
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = backbone(torch.randn(4, 3, 32, 32)).pooled.square().sum()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    assert kept[1] < kept[0] / 2
    assert [name for name, gradient in gradients[0].items() if not torch.equal(gradient, gradients[1][name])] == []


def test_gradient_checkpointing_is_for_training_alone() -> None:
    backbone = build("vit_tiny_patch16_224", 32, gradient_checkpointing=True, **VIT)
    assert backbone.network.grad_checkpointing
    assert not backbone.eval().network.grad_checkpointing
    assert backbone.train().network.grad_checkpointing


@pytest.mark.parametrize(
    ("name", "reason"), [("resnet10t", "batch norms, which would see"), ("crossvit_tiny_240", "does not offer it")]
)
def test_gradient_checkpointing_is_refused_where_it_cannot_be_the_same_run(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"backbone\.gradient_checkpointing: timm/{name} .*{reason}.*: leave it off"):
        build(name, 240, gradient_checkpointing=True)
