"""What a method's recipe and defaults make of the backbone that a config names."""

from __future__ import annotations

from typing import Any

import pytest

from sslcli.config.document import Document
from sslcli.config.merge import apply_overrides
from sslcli.config.resolve import RunConfig, resolve
from sslcli.contracts import VERSION
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.errors import ConfigError
from sslcli.contracts.options import Options
from sslcli.methods.moco_v2 import MoCoV2
from sslcli.methods.moco_v3 import MoCoV3
from sslcli.methods.simclr import SimCLR
from sslcli.plugins import registered
from sslcli.testing.stand_ins import SmallBackbone


class Asking(SimCLR):
    """SimCLR with other settings for vision transformers."""

    @classmethod
    def recipe(cls, options: Any, image_size: int, spec: BackboneSpec) -> list[dict[str, Any]]:
        return [{"size": image_size}, {"size": image_size // 2 if spec.patch_size is None else spec.patch_size}]

    @classmethod
    def defaults(cls, options: Any, spec: BackboneSpec) -> dict[str, dict[str, Any]]:
        vit = spec.patch_size is not None
        backbone = {"positions": "sincos", "heads": 12, "zero_init_residual": False}
        return {"optimizer": {"name": "adamw" if vit else "sgd", "lr": 0.1 * spec.channels}, "backbone": backbone}


class FirstContract(SimCLR):
    """A method of version 1 of the contracts."""

    @classmethod
    def recipe(cls, options: Any, image_size: int) -> dict[str, Any]:  # type: ignore[override]
        return {"preset": "simclr"}

    defaults = {"optimizer": {"name": "sgd", "lr": 0.1}}  # type: ignore[assignment]


class Widening(SimCLR):
    """A method whose defaults change the features."""

    @classmethod
    def defaults(cls, options: Any, spec: BackboneSpec) -> dict[str, dict[str, Any]]:
        return {"optimizer": {"name": "sgd", "lr": 0.1}, "backbone": {"width": 32}}


def resolved(method: type, **sections: Any) -> RunConfig:
    with registered({("methods", method.__name__): method}):
        data = {"name": "shapes", "size": 32}
        return resolve(Document({"method": f"python:{method.__name__}", "data": data, **sections}))


def problems(method: type, **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(method, **sections)
    return caught.value.problems


def test_recipe_and_defaults_see_the_backbone() -> None:
    vit = resolved(Asking, backbone={"name": "vit_tiny", "patch_size": 8})
    assert [view.size for view in vit.views] == [32, 8]
    assert (vit.optimizer.name, vit.backbone.options.positions, vit.backbone.options.heads) == ("adamw", "sincos", 12)
    resnet = resolved(Asking, backbone={"name": "resnet18", "stem": "small"})
    assert [view.size for view in resnet.views] == [32, 16]
    assert (resnet.optimizer.name, resnet.backbone.options.zero_init_residual) == ("sgd", False)


def test_options_of_the_config_come_before_the_methods() -> None:
    backbone = {"name": "vit_tiny", "patch_size": 8, "positions": "learned"}
    options = resolved(Asking, backbone=backbone).backbone.options
    assert (options.positions, options.heads, options.patch_size) == ("learned", 12, 8)


def test_defaults_for_other_backbones_are_left_out() -> None:
    assert resolved(Asking, backbone="torchvision/mobilenet_v2").backbone.name == "torchvision/mobilenet_v2"


def test_the_largest_view_counts() -> None:
    backbone = {"name": "vit_tiny", "patch_size": 8}
    assert [view.size for view in resolved(Asking, backbone=backbone, views={"size": 64}).views] == [64, 8]
    views = [{"size": 24}, {"size": 41}]
    (problem,) = problems(Asking, backbone=backbone, views=views)
    assert "backbone.patch_size: views of 41 pixels are not a multiple of 8" in problem


def test_a_backbone_that_cannot_be_built_is_a_problem_of_the_config() -> None:
    found = problems(SimCLR, backbone={"name": "vit_tiny", "heads": 5}, seed="x")
    assert len(found) == 2
    assert any("backbone.heads: vit_tiny has 192 dimensions, not divisible by 5 heads" in line for line in found)


def test_a_method_of_the_first_contract_is_named_as_such() -> None:
    for what, problem in zip(("defaults", "recipe"), problems(FirstContract), strict=True):
        assert f"{what} of 'python:FirstContract' failed: TypeError" in problem
        assert f"this is version {VERSION} of the contracts" in problem


def test_defaults_must_not_change_the_features() -> None:
    (problem,) = problems(Widening)
    assert "method: the method's defaults change the spec of the backbone" in problem


def test_a_run_keeps_what_the_method_did_not_ask_for_when_it_started() -> None:
    """Defaults of a method change; a run that is resumed has what it was started with, unless the config says more."""
    vit = {"name": "vit_tiny", "patch_size": 8}
    options = resolved(MoCoV3, backbone=vit).backbone.options
    assert (options.init, options.as_in_run({}).init) == ("xavier", "normal")
    assert options.as_in_run({"init": "xavier"}).init == "xavier"
    assert resolved(MoCoV3, backbone={**vit, "init": "xavier"}).backbone.options.as_in_run({}).init == "xavier"
    resnet = resolved(MoCoV2, backbone={"name": "resnet18", "stem": "small"}).backbone.options
    assert (resnet.zero_init_residual, resnet.as_in_run({}).zero_init_residual) == (False, True)


def test_a_backbone_that_fails_in_its_own_way_is_a_problem_of_the_config() -> None:
    class Failing(SmallBackbone):
        @classmethod
        def build(cls, options: Any, channels: int, image_size: int) -> SmallBackbone:
            raise ValueError("no such depth")

    with registered({("backbones", "Failing"): Failing}):
        (problem,) = problems(SimCLR, backbone="python:Failing")
    assert problem.endswith("backbone: 'python:Failing' cannot be built: ValueError: no such depth")


def test_a_size_that_is_none_is_the_problem_of_the_size() -> None:
    (problem,) = problems(SimCLR, views={"size": True})
    assert "views.size: should be a side in pixels" in problem


def test_a_preset_does_not_replace_phases_without_a_word() -> None:
    document = Document({"method": "simclr", "data": "shapes", "views": {"phases": [{"until": "50%"}, {}]}})
    apply_overrides(document, ["views.preset=byol"])
    with pytest.raises(ConfigError, match=r"views.preset: cannot be combined with phases"):
        resolve(document)


def test_a_runs_own_value_is_parsed_as_the_options_are() -> None:
    class WithLegacy(Options):
        widths: tuple[int, ...] = (1,)
        legacy = {"widths": [2, 3]}

    assert WithLegacy().as_in_run({}).widths == (2, 3)
    assert WithLegacy().as_in_run({"widths": [4]}).widths == (4,)
    assert WithLegacy(widths=(5,)).as_in_run({"widths": [4]}).widths == (5,)
