"""The workbench `moco`: its presets are the methods they are named after, and incompatible options are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from workbench_helpers import (
    DIM,
    EACH,
    EACH_METHOD,
    EACH_PRESET,
    PRESETS,
    TOTAL,
    batch,
    build,
    embeddings,
    make,
    train,
)

from sslcli.config.options import parse
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.method import Method, Progress
from sslcli.losses import byol_regression, info_nce, nt_xent, vicreg
from sslcli.methods.moco import MoCo
from sslcli.methods.moco_v2 import MoCoV2
from sslcli.runs.network_size import without_memory


@EACH_METHOD
def test_a_preset_is_its_method_from_the_loss_to_the_gradient(preset: str, cls: type[Method]) -> None:
    """One set of weights in both, on the same batches: loss, gradient, features, cosines, two steps long."""
    head = {"projector": {"hidden_dim": 8, "output_dim": DIM}}
    values = head | ({"predictor": {"hidden_dim": 8}} if preset == "byol" else {})
    method: Any = make(cls, values | ({"queue_size": 19} if preset == "moco_v2" else {}))
    bench = build(seed=1, preset=preset)
    names = {name: name.replace("queues.0.", "queue.") for name in method.state_dict()}
    missing, unexpected = bench.load_state_dict(
        {names[name]: value.clone() for name, value in method.state_dict().items()}, strict=False
    )
    assert (missing, unexpected) == (["steps"], [])
    for step in range(2):
        one, other = method(batch(step)), bench(batch(step))
        torch.testing.assert_close(other.loss, one.loss)
        assert torch.equal(other.features, one.features)
        for name, value in one.metrics.items():
            torch.testing.assert_close(other.metrics[name], value, msg=name)
        one.loss.backward()
        other.loss.backward()
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(bench.get_parameter(name).grad, parameter.grad)
        with torch.no_grad():
            for each, out in ((method, one), (bench, other)):
                each.zero_grad()
                each.backbone.linear.weight.add_(0.1)
                each.after_step([out.carry], Progress(step + 1, TOTAL, 3))
    for name, value in method.state_dict().items():
        torch.testing.assert_close(bench.state_dict()[names[name]], value, msg=name)


@EACH_METHOD
def test_a_presets_loss_is_its_methods_on_the_same_embeddings(preset: str, cls: type[Method]) -> None:
    bench, data = build(preset=preset), batch()
    train(bench, 0, 2)  # so that the momentum encoder is no longer the online one
    loss = bench(data).loss
    z, p, k = embeddings(bench, data)
    if preset == "moco_v2":
        expected = info_nce(p[0], k[1], bench.queue.keys, 0.2)
    elif preset == "byol":
        expected = byol_regression(p[0], k[1]) + byol_regression(p[1], k[0])
    elif preset == "vicreg":
        expected = vicreg(z[0], z[1])
    else:  # batch norm has seen both views together
        together = bench.backbone(torch.cat([view.image for view in data.views])).pooled
        expected = nt_xent(*bench.projector(together).chunk(2), 0.5)
    torch.testing.assert_close(loss, expected)


@EACH_METHOD
def test_a_presets_heads_are_its_methods(preset: str, cls: type[Method]) -> None:
    def layers(module: nn.Module) -> list[str]:
        return [str(m) for m in module.modules() if not list(m.children())]

    bench: Any = without_memory(lambda: make(MoCo, {"preset": preset}))
    method: Any = without_memory(lambda: make(cls, {}))
    assert layers(bench.projector) == layers(method.projector)
    if preset == "byol":
        assert layers(bench.predictor) == layers(method.predictor)
    else:
        assert isinstance(bench.predictor, nn.Identity)


@EACH_METHOD
def test_a_presets_options_have_the_values_of_its_method(preset: str, cls: type[Method]) -> None:
    bench, method = MoCo.Options.parse({"preset": preset}), cls.Options.parse({})
    renamed = {"epsilon": "variance_epsilon"}
    shared = {name: renamed.get(name, name) for name in cls.Options.model_fields}
    # `loss` has other values in the workbench; `sigma` is of a loss that it does not have.
    for name in sorted(set(shared) - {"projector", "predictor", "symmetric", "loss", "sigma"}):
        assert getattr(bench, shared[name]) == getattr(method, name), name


@EACH_PRESET
@pytest.mark.parametrize("size", [32, 224])
def test_a_preset_has_its_methods_views(preset: str, size: int) -> None:
    cls = PRESETS[preset] or MoCoV2
    options, spec = MoCo.Options.parse({"preset": preset}), BackboneSpec(DIM)
    assert MoCo.recipe(options, size, spec) == cls.recipe(cls.Options.parse({}), size, spec)


@EACH
def test_options_written_out_in_full_read_back_as_they_were(knobs: dict[str, Any]) -> None:
    options = MoCo.Options.parse(knobs)
    assert MoCo.Options.parse(options.plain()) == options
    assert set(options.plain()) == set(MoCo.Options.model_fields)


@EACH_PRESET
def test_options_that_are_given_win_over_the_preset(preset: str) -> None:
    given = {
        "temperature": 0.07, "momentum": 0.5, "final_momentum": 0.6, "loss_factor": 3.0, "unit_sphere": True,
        "both_views_as_queries": False, "shuffle_bn": True, "projector": {"norm": "layer", "output_dim": 11},
        "predictor": {"layers": 3},
    }  # fmt: skip
    options = MoCo.Options.parse({"preset": preset, **given}).plain()
    plain = MoCo.Options.parse({"preset": preset}).plain()
    for name, value in given.items():
        if isinstance(value, dict):
            assert options[name] == {**plain[name], **value}  # the rest of the head stays the preset's
        else:
            assert options[name] == value
    assert {n: v for n, v in options.items() if n not in given} == {n: v for n, v in plain.items() if n not in given}


def test_null_is_a_value_that_wins_where_the_option_can_be_null_and_the_preset_elsewhere() -> None:
    nulls = {"final_momentum": None, "projector": {"hidden_dim": None}, "momentum": None, "predictor": None}
    options = parse(MoCo.Options, {"preset": "byol", **nulls})
    assert (options.final_momentum, options.projector.hidden_dim) == (None, None)
    assert options == parse(MoCo.Options, {"preset": "byol", "final_momentum": None, "projector": {"hidden_dim": None}})
    assert options.predictor.layers == 2


def test_a_preset_of_another_name_is_refused() -> None:
    for name in ("mocov2", 3, None):
        with pytest.raises(ValidationError, match="preset"):
            MoCo.Options.parse({"preset": name})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"negatives": "none"}, "loss 'ce' is always 0 without negatives: set negatives to queue or batch"),
        ({"loss": "vic"}, "loss 'vic' does not use negatives, and they are 'queue': set them to none"),
        ({"loss": "vic", "negatives": "batch"}, "loss 'vic' does not use negatives, and they are 'batch'"),
        ({"preset": "simclr", "loss": "vic"}, "and they are 'batch': set them to none"),
        ({"preset": "byol", "loss": "ce"}, "loss 'ce' is always 0 without negatives"),
        ({"loss": "bce", "eqco_alpha": 9.0}, "eqco_alpha is a margin of loss 'ce', and loss is 'bce'"),
        ({"preset": "vicreg", "eqco_alpha": 9.0}, "eqco_alpha is a margin of loss 'ce', and loss is 'vic'"),
        ({"preset": "vicreg", "invariance": 0, "variance": 0, "covariance": 0}, "needs a weight above 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"queue_size": 0}, "greater than or equal to 1"),
        ({"eqco_alpha": 0}, "greater than 0"),
        ({"loss_factor": 0}, "greater than 0"),
        ({"temperature": 0}, "greater than 0"),
        ({"variance_epsilon": 0}, "greater than 0"),
        ({"loss": "nce"}, "'ce', 'bce', 'ip' or 'vic'"),
        ({"projector": {"layers": -1}}, "greater than or equal to 0"),
        ({"projector": 3}, "projector"),
        ({"preset": "byol", "projector": 3}, "projector"),
        ({"queue": 3}, "Extra inputs"),
    ],
)
def test_incompatible_options_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MoCo.Options.parse(knobs)
