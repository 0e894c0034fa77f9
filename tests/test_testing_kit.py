"""The conformance kit: every built-in passes it, and every check can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_plugins as broken
import pytest
import torch
from small_options import small
from tiny_data import WRITERS, tiny_root  # noqa: F401  # a fixture

from sslcli import testing
from sslcli.contracts.data import Dataset, RootedOptions
from sslcli.contracts.errors import UserError
from sslcli.plugins import GROUPS, find, load_found
from sslcli.testing.stand_ins import SmallBackbone

#: What needs a run or an extra is held to its contract where its own tests are.
ELSEWHERE = {("exporters", "projector"), ("exporters", "onnx")}
BUILT_IN = [
    (group, plugin.name)
    for group in GROUPS
    for plugin in find(group)
    if plugin.package == "sslcli" and (group, plugin.name) not in ELSEWHERE
]
#: Options that a plugin needs beside those.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("datasets", "shapes"): {"count": 40, "size": 16},
    ("exporters", "features"): {"data": {"name": "shapes", "count": 40, "size": 16}},
}
#: Further arguments of the check.
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {}


@pytest.mark.parametrize(("group", "name"), BUILT_IN, ids=lambda value: value)
def test_every_built_in_keeps_its_contract(group: str, name: str, tiny_root: Path) -> None:  # noqa: F811
    (plugin,) = [p for p in find(group) if (p.package, p.name) == ("sslcli", name)]
    cls: Any = load_found(plugin)
    values = small(cls.Options) if hasattr(cls, "Options") else {}
    if isinstance(cls, type) and issubclass(cls, Dataset) and issubclass(cls.Options, RootedOptions):
        assert name in WRITERS, f"{name}: add what writes a small one to tests/tiny_data.py"
        WRITERS[name](tiny_root)
        values["root"] = str(tiny_root)
    values |= OPTIONS.get((group, name), {})
    testing.check_plugin(group, f"sslcli:{name}", values, **SETTINGS.get((group, name), {}))


def test_there_is_a_check_for_every_group() -> None:
    assert {group for group, _ in BUILT_IN} == set(GROUPS)


METHOD = {"projector": {"hidden_dim": 16, "output_dim": 8}}
CASES: list[tuple[Callable[..., None], type, str, dict[str, Any] | None]] = [
    (testing.check_method, broken.Undocumented, "Options.loud has no docstring", None),
    (testing.check_method, broken.Lax, "takes unknown keys", METHOD),
    (testing.check_method, broken.Unresolvable, "recipe cannot be resolved: .*flop", METHOD),
    (testing.check_method, broken.ThreeViews, "recipe has 2 views, its view_count is 3", METHOD),
    (testing.check_method, broken.BadDefaults, "defaults.'optimizer'. is not valid: .*momemtum", METHOD),
    (testing.check_method, broken.Detached, "no gradient reaches backbone.layers.0.weight", METHOD),
    (testing.check_method, broken.Attached, "'loss_again' must be a detached 0-dim tensor", METHOD),
    (testing.check_method, broken.CountsInForward, "forward changes .'seen'.; state changes in after_step", METHOD),
    (testing.check_method, broken.Forgets, "resumed, other losses; state that is no parameter", METHOD),
    (testing.check_method, broken.LeavesOut, "parameter_groups: 'projector.* is left out", METHOD),
    (testing.check_method, broken.OwnChance, "equal seeds, other losses", METHOD),
    (testing.check_backbone, broken.WrongDim, r"are \(2, 16\), the spec says \(2, 17\)", None),
    (testing.check_backbone, broken.AlwaysDrops, "two passes over the same images in eval.. differ", None),
    (testing.check_backbone, broken.BatchNormInEval, "depend on the others in its batch", None),
    (testing.check_backbone, broken.TakesMask, "must refuse a mask", None),
    (testing.check_backbone, broken.OwnSeed, "the same weights whatever the seed", None),
    (testing.check_backbone, broken.ImportsNothing, "import_state of what export_state returned gives other", None),
    (testing.check_backbone, broken.ThreeChannels, "spec.channels is 3 when built for 1", None),
    (testing.check_dataset, broken.FloatImages, r"image\(0\) is no uint8 tensor", None),
    (testing.check_dataset, broken.OtherImages, r"images\(\)\[0\] is not image\(0\)", None),
    (testing.check_dataset, broken.FirstOnes, "does not keep the share of each class", None),
    (testing.check_dataset, broken.TooManyLabels, "labels go to 3, of 3 classes", None),
    (testing.check_dataset, broken.Unpicklable, "cannot be pickled", None),
    (testing.check_dataset, broken.Flickering, r"image\(0\) is another", None),
    (testing.check_dataset, broken.TooSmall, "no side may fall below 4", None),
    (testing.check_dataset, broken.AnyRoot, "one line that names the folder", None),
    (testing.check_dataset, broken.UnknownSplit, "refuses the split 'test'", None),
    (testing.check_operation, broken.InPlace, "changes the images that it was given", None),
    (testing.check_operation, broken.OneDraw, "each sample needs a draw of its own", None),
    (testing.check_operation, broken.RankedDraws, "'factor' depends on the others in the batch", None),
    (testing.check_operation, broken.OwnDraws, "draws from torch's generator", None),
    (testing.check_operation, broken.BatchMean, "a sample depends on the others in its batch", None),
    (testing.check_operation, broken.TooBright, r"not in \[0, 1\]", None),
    (testing.check_operation, broken.SmallerView, r"not float32 \(64, 1, 16, 16\)", None),
    (testing.check_operation, broken.ColorOnly, "not float32|fails on images with 4 channels", None),
    (testing.check_operation, broken.TopLeft, "8-bit levels away from apply", None),
    (testing.check_operation, broken.NoSide, "source_side must return None", None),
    (testing.check_preset, broken.NoViews, "must return a list of views", None),
    (testing.check_preset, broken.TypoViews, "cannot be resolved: .*flipp", None),
    (testing.check_preset, broken.RandomViews, "something else each time", None),
    (testing.check_optimizer, broken.DropsKeys, "drops 'names' from its param_groups", None),
    (testing.check_optimizer, broken.OwnRate, "with the groups' lr set to 0", None),
    (testing.check_optimizer, broken.OwnCount, "all state must be in optimizer.state", None),
    (testing.check_optimizer, broken.DividesByNorm, "not finite after a step with gradients of 0", None),
    (testing.check_optimizer, broken.DecaysAll, "has weight_decay 0 and a gradient of 0, and moves", None),
    (testing.check_optimizer, broken.FixedDecay, "with another weight_decay in the groups the step is the same", None),
    (testing.check_optimizer, broken.DecaysFrozen, r"a parameter without a gradient moves: .'0\.weight'", None),
    (testing.check_optimizer, broken.StacksNorms, r"'0\.bias', '2\.bias'. have no gradient: RuntimeError", None),
    (testing.check_schedule, broken.Countdown, "depends on which steps were asked for", None),
    (testing.check_schedule, broken.BelowZero, r"BelowZero\(11\) is -", None),
    (testing.check_schedule, broken.Overshoots, "above its base", None),
    (testing.check_evaluator, broken.Trains, "changes the backbone that it judges", None),
    (testing.check_evaluator, broken.Dice, "two runs with one seed", None),
    (testing.check_evaluator, broken.Percent, "accuracies are shares between 0 and 1", None),
    (testing.check_evaluator, broken.Silent, "the protocol is empty", None),
    (testing.check_evaluator, broken.Peeks, "before it has said what it chose", None),
    (testing.check_evaluator, broken.Centers, "changed the features of the part 'eval' in place", None),
    (testing.check_evaluator, broken.Unfreezes, "what gets gradients", None),
    (testing.check_evaluator, broken.SaysUnseeded, "another seed changes it", None),
    (testing.check_evaluator, broken.NeedsNoLabels, "must refuse data without any", None),
    (testing.check_exporter, broken.BadLines, "the lines of how_to_load fail: ModuleNotFoundError", None),
    (testing.check_exporter, broken.OtherWeights, "gives other features", None),
    (testing.check_exporter, broken.Nowhere, "there is no such file", None),
    (testing.check_exporter, broken.Traceback, "must raise a UserError of one line", None),
    (testing.check_callback, broken.EvalMode, "leaves the encoder in another mode", None),
    (testing.check_callback, broken.UpdatesStatistics, "changes .*of the encoder", None),
    (testing.check_callback, broken.Forgetful, "does not bring back 'steps'", None),
    (testing.check_callback, broken.NeedsStart, "before it has begun: AttributeError", None),
    (testing.check_callback, broken.WritesEverywhere, "in a process that is not the main one", None),
    (testing.check_callback, broken.NeedsLoss, "ends a run .*KeyError: 'loss'", None),
    (testing.check_callback, broken.NoDocstring, "has no docstring", None),
    (testing.check_callback, broken.ListState, "the state 'steps' is a list", None),
]


@pytest.mark.parametrize(("check", "cls", "words", "options"), CASES, ids=[case[1].__name__ for case in CASES])
def test_a_broken_promise_is_found(
    check: Callable[..., None], cls: type, words: str, options: dict[str, Any] | None
) -> None:
    with pytest.raises(AssertionError, match=words) as caught:
        check(cls, options)
    assert cls.__name__ in str(caught.value)


def test_a_provider_must_refuse_a_name_that_it_does_not_list() -> None:
    with pytest.raises(AssertionError, match=r"AnyName\.get of a name that it does not list must raise KeyError"):
        testing.check_provider(broken.AnyName)


@pytest.mark.parametrize(
    ("check", "cls"),
    [
        (testing.check_backbone, SmallBackbone),
        (testing.check_dataset, broken.Pictures),
        (testing.check_operation, broken.Dim),
        (testing.check_optimizer, broken.Healthy),
        (testing.check_evaluator, broken.Judge),
    ],
    ids=lambda value: value.__name__,
)
def test_what_the_broken_ones_are_made_from_is_healthy(check: Callable[..., None], cls: type) -> None:
    check(cls)


def test_options_that_the_plugin_refuses_are_told_with_their_name() -> None:
    with pytest.raises(AssertionError, match="refuses the options of the check: temperature"):
        testing.check_method(broken.Attached, {"temperature": -1})


def test_an_unknown_plugin_is_no_broken_one() -> None:
    with pytest.raises(UserError, match="unknown method 'simclrr'; did you mean simclr"):
        testing.check_plugin("methods", "simclrr")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_method_is_checked_on_a_device() -> None:
    testing.check_plugin("methods", "simclr", METHOD, device="cuda")
    testing.check_plugin("optimizers", "lars", device="cuda")
