"""The workbench `moco`: its presets are the methods they are named after, and each knob does what it says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from sslcli import testing
from sslcli.config.options import parse
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.data import DataInfo
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, View
from sslcli.losses import byol_regression, info_nce, nt_xent, vicreg
from sslcli.methods.byol import BYOL
from sslcli.methods.moco import MoCo
from sslcli.methods.moco_v2 import MoCoV2
from sslcli.methods.simclr import SimCLR
from sslcli.methods.vicreg import VICReg
from sslcli.modules.norms import BatchRenorm1d, StandardisedLinear

COUNT, DIM, TOTAL = 8, 5, 6
PRESETS = {"none": None, "moco_v2": MoCoV2, "simclr": SimCLR, "byol": BYOL, "vicreg": VICReg}
EACH_PRESET = pytest.mark.parametrize("preset", PRESETS)
EACH_METHOD = pytest.mark.parametrize(("preset", "cls"), [(n, c) for n, c in PRESETS.items() if c is not None])
#: Further places on the way from one preset to another.
STEPS_BETWEEN: dict[str, dict[str, Any]] = {
    "both directions": {"both_views_as_queries": True},
    "binary": {"loss": "bce", "loss_factor": 30.0},
    "binary, positives alone": {"loss": "bce", "negatives": "none"},
    "batch": {"negatives": "batch"},
    "batch, the other view, no sphere": {"negatives": "batch", "batch_negatives": "other_view", "unit_sphere": False},
    "eqco on the batch": {"negatives": "batch", "eqco_alpha": 1000.0, "gather_keys": False},
    "a queue of online keys": {"momentum_encoder": False},
    "keys with gradient": {"momentum_encoder": False, "stop_gradient": False, "views_together": True},
    "simsiam's": {
        "loss": "ip", "negatives": "none", "momentum_encoder": False, "both_views_as_queries": True,
        "predictor": {"layers": 2, "hidden_dim": 8, "norm": "batch"},
    },
    "vicreg with a predictor, both together": {
        "loss": "vic", "negatives": "none", "both_views_as_queries": True, "views_together": True, "predictor": {"layers": 1},
    },
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {**{name: {"preset": name} for name in PRESETS}, **STEPS_BETWEEN}
EACH = pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)


class Linear(Backbone):
    """Pixels → 6 features, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(feature_dim=6)
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    @classmethod
    def build(cls, options: Any, channels: int, image_size: int) -> Linear:
        return cls()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.norm(self.linear(x.flatten(1))))


def small(**knobs: Any) -> dict[str, Any]:
    """The knobs, with small heads and a queue whose length is no multiple of the batch."""
    heads = {"projector": {"hidden_dim": 8, "output_dim": DIM}, "predictor": {"hidden_dim": 8}}
    heads = {name: {**head, **knobs.get(name, {})} for name, head in heads.items()}
    return {"queue_size": 19, **knobs, **heads}


def make(cls: type[Method], values: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    data = DataInfo("random", 3, (2, 2), (0.5,) * 3, (0.2,) * 3)
    return cls(Linear(), cls.Options.parse(values), RunInfo(TOTAL, 3, 2, COUNT, 1, data))


def build(seed: int = 0, **knobs: Any) -> MoCo:
    return make(MoCo, small(**knobs), seed)


def batch(seed: int = 1, count: int = COUNT, views: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = [View(torch.randn(count, 3, 2, 2, generator=generator)) for _ in range(views)]
    return Batch(images, None, torch.arange(count), {})


def train(method: Method, first: int, last: int) -> list[float]:
    """Plain gradient descent; optimizer steps `first` to `last` − 1, each with its own batch."""
    losses = []
    for step in range(first, last):
        out = method(batch(step))
        method.zero_grad()
        out.loss.backward()
        with torch.no_grad():
            for group in method.parameter_groups():
                for parameter in group.parameters.values():
                    parameter -= 0.1 * parameter.grad
            method.after_step([out.carry], Progress(step + 1, TOTAL, 3))
        losses.append(out.loss.item())
    return losses


def embeddings(method: MoCo, data: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Both views' online projections, predictions of them, and momentum projections, one view at a time."""
    images = [view.image for view in data.views]
    z = [method.projector(method.backbone(x).pooled) for x in images]
    p = [method.predictor(each) for each in z]
    k = [method.momentum_encoder(x) for x in images] if method.momentum_encoder is not None else []
    return z, p, k


# --- presets ---------------------------------------------------------------------------------------------------------


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
        for name in {"pos_cos", "neg_cos"} if preset == "simclr" else one.metrics:
            if (preset, name) != ("simclr", "neg_cos"):  # there the mean has the keys' own view in it too
                torch.testing.assert_close(other.metrics[name], one.metrics[name], msg=name)
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

    bench: Any = make(MoCo, {"preset": preset})
    method: Any = make(cls, {})
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
    for name in sorted(set(shared) - {"projector", "predictor", "symmetric"}):
        assert getattr(bench, shared[name]) == getattr(method, name), name


@EACH_PRESET
@pytest.mark.parametrize("size", [32, 224])
def test_a_preset_has_its_methods_views(preset: str, size: int) -> None:
    cls = PRESETS[preset] or MoCoV2
    options = MoCo.Options.parse({"preset": preset})
    assert MoCo.recipe(options, size) == cls.recipe(cls.Options.parse({}), size)


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


def test_defaults_are_the_published_ones_for_stl10() -> None:
    options = MoCo.Options.parse({})
    assert (options.temperature, options.queue_size, options.projector.output_dim) == (0.2, 65536, 128)
    assert (options.momentum, options.final_momentum, options.both_views_as_queries) == (0.996, None, False)
    assert options.predictor.layers == 0
    optimizer = MoCo.defaults["optimizer"]
    assert (optimizer["name"], optimizer["lr"], optimizer["weight_decay"]) == ("sgd", 0.5, 1e-4)


# --- what doesn't go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"negatives": "none"}, "loss 'ce' is always 0 without negatives: set negatives to queue or batch"),
        ({"loss": "ip"}, "loss 'ip' has no use for negatives, and they are 'queue': set negatives to none"),
        ({"loss": "ip", "negatives": "batch"}, "loss 'ip' has no use for negatives, and they are 'batch'"),
        ({"loss": "vic"}, "loss 'vic' has no use for negatives, and they are 'queue': set negatives to none"),
        ({"loss": "vic", "negatives": "batch"}, "loss 'vic' has no use for negatives, and they are 'batch'"),
        ({"preset": "simclr", "loss": "vic"}, "and they are 'batch': set negatives to none"),
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
        ({"projector": {"layers": 0}}, "greater than or equal to 1"),
        ({"projector": 3}, "projector"),
        ({"preset": "byol", "projector": 3}, "projector"),
        ({"queue": 3}, "Extra inputs"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused_in_words(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MoCo.Options.parse(knobs)


@pytest.mark.parametrize("views", [1, 3])
def test_it_needs_two_views(views: int) -> None:
    with pytest.raises(UserError, match=f"moco needs exactly 2 views of an image, not {views}"):
        build()(batch(views=views))


# --- what every setting owes the loop --------------------------------------------------------------------------------


@EACH
def test_every_setting_keeps_the_contract_of_a_method(knobs: dict[str, Any]) -> None:
    """Gradients reach all that is trained; evaluation changes nothing; resumed is never stopped; and the rest."""
    testing.check_method(MoCo, small(**knobs))


@EACH
def test_three_steps_and_three_more_are_six(knobs: dict[str, Any]) -> None:
    whole, first, second = build(**knobs), build(**knobs), build(seed=9, **knobs)
    losses = train(whole, 0, 6)
    again = train(first, 0, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert again + train(second, 3, 6) == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@EACH
def test_an_evaluation_pass_changes_nothing(knobs: dict[str, Any]) -> None:
    method = build(**knobs)
    train(method, 0, 2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    with torch.no_grad():
        method(batch(7))
        method.encoder()(batch(8).views[0].image)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


@pytest.mark.slow
@EACH
def test_every_setting_is_one_graph(knobs: dict[str, Any]) -> None:
    method, graphs = build(**knobs), CompileCounter()
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    train(method, 0, 3)
    assert graphs.frame_count == 1


@EACH
def test_the_factor_multiplies_the_loss_and_nothing_else(knobs: dict[str, Any]) -> None:
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


# --- each knob -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("batch_negatives", ["all", "other_view"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("unit_sphere", [False, True])
def test_batch_negatives_are_the_momentum_keys_of_the_other_images(
    loss: str, batch_negatives: str, both: bool, unit_sphere: bool
) -> None:
    knobs = {"negatives": "batch", "batch_negatives": batch_negatives, "both_views_as_queries": both}
    method, data = build(**knobs, loss=loss, unit_sphere=unit_sphere, temperature=0.7), batch()
    train(method, 0, 2)
    value = method(data).loss
    _, p, k = embeddings(method, data)
    if unit_sphere:
        p, k = ([F.normalize(x, dim=1) for x in each] for each in (p, k))
    each = []
    for view in (0, 1) if both else (0,):
        for i in range(COUNT):
            sources = [k[1 - view]] + ([k[view]] if batch_negatives == "all" else [])
            negatives = torch.stack([s[j] for s in sources for j in range(COUNT) if j != i])
            up, down = p[view][i] @ k[1 - view][i] / 0.7, negatives @ p[view][i] / 0.7
            together = torch.cat((up.view(1), down))
            if loss == "ce":
                each.append(-F.log_softmax(together, dim=0)[0])
            else:
                each.append(F.binary_cross_entropy_with_logits(together, torch.eye(len(together))[0]))
    torch.testing.assert_close(value, torch.stack(each).mean())


def test_eqco_with_few_negatives_counts_them_many_times() -> None:
    method, data = build(eqco_alpha=19 * 4.0), batch()
    loss = method(data).loss
    _, p, k = embeddings(method, data)
    torch.testing.assert_close(loss, info_nce(p[0], k[1], method.queue.keys.repeat(4, 1), 0.2))


def test_eqco_on_the_batch_counts_the_negatives_really_used() -> None:
    knobs = {"negatives": "batch", "batch_negatives": "other_view"}
    torch.testing.assert_close(
        build(**knobs, eqco_alpha=COUNT - 1.0)(batch()).loss, build(**knobs)(batch()).loss, rtol=1e-6, atol=0
    )


def test_vic_weights_and_epsilon_are_the_options() -> None:
    method, data = build(preset="vicreg", invariance=2.0, variance=3.0, covariance=5.0, variance_epsilon=0.5), batch()
    loss = method(data).loss
    z, _, _ = embeddings(method, data)
    torch.testing.assert_close(loss, vicreg(z[0], z[1], 2.0, 3.0, 5.0, 0.5))


def test_vic_may_work_on_the_unit_sphere() -> None:
    method, data = build(preset="vicreg", unit_sphere=True), batch()
    loss = method(data).loss
    z, _, _ = embeddings(method, data)
    torch.testing.assert_close(loss, vicreg(F.normalize(z[0], dim=1), F.normalize(z[1], dim=1)))


@pytest.mark.parametrize("loss", ["ip", "bce"])
def test_positive_pairs_alone(loss: str) -> None:
    method, data = build(loss=loss, negatives="none", unit_sphere=False), batch()
    value = method(data).loss
    _, p, k = embeddings(method, data)
    inner = (p[0] * k[1]).sum(dim=1)
    torch.testing.assert_close(value, (1 - inner if loss == "ip" else F.softplus(-inner / 0.2)).mean())


def gradient_through_the_key(method: MoCo) -> bool:
    """Whether anything of view 2, which is a key alone, gets a gradient."""
    data = batch()
    data.views[1].image.requires_grad_()
    method(data).loss.backward()
    gradient = data.views[1].image.grad
    return gradient is not None and bool(gradient.abs().sum() > 0)


@pytest.mark.parametrize("negatives", ["queue", "batch"])
def test_gradient_flows_through_the_keys_only_where_it_is_not_stopped(negatives: str) -> None:
    knobs = {"negatives": negatives, "batch_negatives": "other_view"}
    assert not gradient_through_the_key(build(**knobs))
    assert not gradient_through_the_key(build(**knobs, stop_gradient=False))  # a momentum encoder has none anyway
    assert not gradient_through_the_key(build(**knobs, momentum_encoder=False))
    assert gradient_through_the_key(build(**knobs, momentum_encoder=False, stop_gradient=False))


def test_simsiam_without_stop_gradient_needs_to_be_asked_for() -> None:
    simsiam = STEPS_BETWEEN["simsiam's"] | {"both_views_as_queries": False}
    assert not gradient_through_the_key(build(**simsiam))
    assert gradient_through_the_key(build(**simsiam, stop_gradient=False))


def test_online_keys_come_before_the_predictor() -> None:
    method, data = build(**STEPS_BETWEEN["simsiam's"]), batch()
    loss = method(data).loss
    z, p, _ = embeddings(method, data)
    torch.testing.assert_close(loss, (byol_regression(p[0], z[1]) + byol_regression(p[1], z[0])) / 4)


@EACH
def test_there_is_a_momentum_encoder_and_a_queue_only_where_they_are_used(knobs: dict[str, Any]) -> None:
    method = build(**knobs)
    names = {name.split(".")[0] for name in method.state_dict()}
    assert ("momentum_encoder" in names) == method.options.momentum_encoder
    assert ("queue" in names) == (method.options.negatives == "queue")
    assert ("predictor" in names) == bool(method.options.predictor.layers)


@pytest.mark.parametrize(("together", "batches"), [(False, 2), (True, 1)])
def test_batch_norms_see_views_together_on_request(together: bool, batches: int) -> None:
    method = build(views_together=together, both_views_as_queries=True)
    method(batch())
    assert method.backbone.norm.num_batches_tracked.item() == batches
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 2


def test_the_network_sees_no_view_that_nobody_asks_for() -> None:
    method = build()
    method(batch())
    assert method.backbone.norm.num_batches_tracked.item() == 1
    assert method.momentum_encoder.backbone.norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("unit_sphere", [True, False])
@pytest.mark.parametrize("both", [False, True])
def test_the_queue_takes_view_2_then_view_1_of_each_micro_batch(both: bool, unit_sphere: bool) -> None:
    method = build(both_views_as_queries=both, unit_sphere=unit_sphere, queue_size=37)
    train(method, 0, 1)
    before, start = method.queue.keys.clone(), int(method.queue.place)
    data = [batch(5, count=4), batch(6, count=3)]
    carries = [method(each).carry for each in data]
    assert torch.equal(method.queue.keys, before)  # until the step is made
    expected = []
    for each in data:
        keys = embeddings(method, each)[2]
        expected += [keys[1], keys[0]] if both else [keys[1]]
    rows = torch.cat([F.normalize(k, dim=1) if unit_sphere else k for k in expected])
    method.after_step(carries, Progress(2, TOTAL, 3))
    places = (start + torch.arange(len(rows))) % 37
    torch.testing.assert_close(method.queue.keys[places], rows)
    others = [i for i in range(37) if i not in places.tolist()]
    assert torch.equal(method.queue.keys[others], before[others])


def test_both_directions_are_compared_with_one_queue() -> None:
    method, data = build(both_views_as_queries=True), batch()
    train(method, 0, 2)
    loss = method(data).loss
    _, p, k = embeddings(method, data)
    each = [info_nce(p[view], k[1 - view], method.queue.keys, 0.2) for view in (0, 1)]
    torch.testing.assert_close(loss, sum(each) / 2)


def test_the_momentum_stays_or_goes_to_where_it_is_told() -> None:
    for final, expected in ((None, 0.9), (0.5, 0.5)):
        method = build(momentum=0.9, final_momentum=final)
        before = method.momentum_encoder.backbone.linear.weight.clone()
        with torch.no_grad():
            method.backbone.linear.weight.add_(1)
        method.after_step([{}], Progress(TOTAL, TOTAL, 3))
        torch.testing.assert_close(method.momentum_encoder.backbone.linear.weight, before + 1 - expected)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("none", None),
        ("batch", nn.BatchNorm1d),
        ("layer", nn.LayerNorm),
        ("group", nn.GroupNorm),
        ("batch_renorm", BatchRenorm1d),
    ],
)
@pytest.mark.parametrize("standardised", [False, True])
def test_heads_take_any_norm_weight_standardisation_and_last_norm(
    norm: str, kind: type[nn.Module] | None, standardised: bool
) -> None:
    head = {"layers": 2, "norm": norm, "groups": 4, "weight_standardisation": standardised, "last_norm": "no_affine"}
    method = build(projector=head, predictor=head)
    linear = StandardisedLinear if standardised else nn.Linear
    for part in (method.projector, method.predictor, method.momentum_encoder.projector):
        layers = [type(m) for m in part.modules() if not list(m.children())]
        assert layers == [linear, *([kind] if kind else []), nn.ReLU, linear, nn.BatchNorm1d]
    assert math.isfinite(train(method, 0, 2)[1])


def test_groups_that_do_not_divide_a_heads_width_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="cannot be cut into 3 groups"):
        build(predictor={"layers": 2, "norm": "group", "groups": 3})
