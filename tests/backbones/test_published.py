"""torchvision's published weights: downloaded when a run starts, adapted to the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torchvision import models

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.logs import lines_to
from sslcli.plugins import load
from sslcli.runs.weights import start_from


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty download cache, and no network."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no network\nhere")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def publish(cache: Path, name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Puts random weights into torchvision's download cache."""
    torch.manual_seed(3)
    state = models.get_model(name, weights=None, **arguments).state_dict()
    torch.save(state, cache / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2])
    return dict(state)


def start(name: str, size: int = 32, channels: int = 3, **options: Any) -> tuple[Backbone, list[str]]:
    cls: type[Backbone] = load("backbones", name)
    parsed = cls.Options.parse({"pretrained": True, **options})
    backbone = cls.build(parsed, channels, size)
    said: list[str] = []
    with lines_to(said.append):
        start_from(backbone, name, parsed)
    return backbone.eval(), said


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5"])
def test_features_are_those_of_the_published_model(cache: Path, name: str) -> None:
    plain = name.rpartition("/")[2]
    state = publish(cache, plain)
    theirs = models.get_model(plain, weights=None)
    theirs.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    backbone, said = start(name)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(x).pooled, theirs.eval()(x))
    assert said == [
        f"backbone: the published weights of {name!r}: the backbone starts from these weights, without the classifier "
        "(fc.weight, fc.bias)"
    ]


def test_old_names_of_densenet_are_read(cache: Path) -> None:
    state = publish(cache, "densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, cache / models.get_model_weights("densenet121").DEFAULT.url.rpartition("/")[2])
    found = start("torchvision/densenet121")[0].export_state()[0]
    key = "features.denseblock1.denselayer1.norm1.running_mean"
    assert torch.equal(found[key], state[key])


def test_auxiliary_classifiers_are_left_out_and_the_input_is_transformed(cache: Path) -> None:
    publish(cache, "googlenet", init_weights=False, aux_logits=True)
    backbone, said = start("torchvision/googlenet")
    assert "aux1.conv.conv.weight" in said[0]
    assert backbone.network.transform_input is True
    assert "transform_input=True" in backbone.export_state()[1]


@pytest.mark.slow  # the smallest of them has 88 million parameters
def test_positions_of_a_vit_are_interpolated_to_the_views(cache: Path) -> None:
    state = publish(cache, "vit_b_32")
    found = start("torchvision/vit_b_32", 64)[0].export_state()[0]
    assert found["encoder.pos_embedding"].shape == (1, 1 + 4, 768)
    assert torch.equal(found["encoder.pos_embedding"][:, 0], state["encoder.pos_embedding"][:, 0])
    assert torch.equal(found["conv_proj.weight"], state["conv_proj.weight"])


def test_without_network_or_with_a_damaged_file_one_line_says_what_to_do(cache: Path) -> None:
    file = cache / models.get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2]
    problem = "backbone.pretrained: torchvision's weights of resnet18 cannot be loaded"
    with pytest.raises(UserError) as caught:
        start("resnet18")
    assert str(caught.value) == f"{problem} (no network here): put {file.name} into {cache}, or set pretrained=false"
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"^{problem} \(.*\): remove {file}, or set pretrained=false$"):
        start("resnet18")


def test_another_number_of_channels_is_refused(cache: Path) -> None:
    publish(cache, "resnet18")
    with pytest.raises(UserError, match=r"'conv1.weight' is \(64, 3, 7, 7\) there, but \(64, 1, 7, 7\)"):
        start("resnet18", channels=1)


@pytest.mark.parametrize("values", [{"stem": "small"}, {"width": 32}, {"weights": "a.safetensors"}], ids=str)
def test_options_that_published_weights_do_not_fit_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"published weights exist for|weights or pretrained, not both"):
        load("backbones", "resnet18").Options.parse({"pretrained": True, **values})


def test_a_backbone_without_published_weights_has_no_such_option() -> None:
    with pytest.raises(ValidationError, match="pretrained"):
        load("backbones", "ws_resnet18").Options.parse({"pretrained": True})


def test_nothing_is_downloaded_by_default(cache: Path) -> None:
    for name in ("resnet18", "torchvision/shufflenet_v2_x0_5", "cifar_resnet20"):
        backbone = load("backbones", name)
        options = backbone.Options()
        start_from(backbone.build(options, 3, 32), name, options)
