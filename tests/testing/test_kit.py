"""The conformance kit finds every broken rule, and finds nothing in a correct plugin."""

from __future__ import annotations

from collections.abc import Callable

import broken_backbones as backbones
import broken_plugins as plugins
import broken_streams as streams
import broken_tools as tools
import pytest
from broken_plugins import Broken

from sslcli import testing
from sslcli.contracts.errors import UserError
from sslcli.testing.stand_ins import SmallBackbone

TABLES = {
    testing.check_method: plugins.METHODS,
    testing.check_backbone: backbones.BACKBONES,
    testing.check_provider: backbones.PROVIDERS,
    testing.check_dataset: plugins.DATASETS,
    testing.check_stream: streams.STREAMS,
    testing.check_operation: plugins.OPERATIONS,
    testing.check_preset: plugins.PRESETS,
    testing.check_optimizer: tools.OPTIMIZERS,
    testing.check_schedule: tools.SCHEDULES,
    testing.check_evaluator: tools.EVALUATORS,
    testing.check_exporter: tools.EXPORTERS,
    testing.check_callback: tools.CALLBACKS,
}
CASES = [pytest.param(check, case, id=case.cls.__name__) for check, cases in TABLES.items() for case in cases]


@pytest.mark.parametrize(("check", "case"), CASES)
def test_a_broken_rule_is_found(check: Callable[..., None], case: Broken) -> None:
    with pytest.raises(AssertionError, match=case.words) as caught:
        check(case.cls) if case.options is None else check(case.cls, case.options)
    assert case.cls.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("check", "cls"),
    [
        (testing.check_backbone, SmallBackbone),
        (testing.check_dataset, plugins.Pictures),
        (testing.check_stream, streams.Numbers),
        (testing.check_operation, plugins.Dim),
        (testing.check_operation, plugins.TopLeft),
        (testing.check_optimizer, tools.Descent),
        (testing.check_schedule, tools.Constant),
        (testing.check_evaluator, tools.FirstClass),
        (testing.check_callback, tools.Counter),
    ],
    ids=lambda value: value.__name__,
)
def test_what_the_broken_ones_are_made_from_is_correct(check: Callable[..., None], cls: type) -> None:
    check(cls)


def test_there_is_a_broken_plugin_for_every_check() -> None:
    assert {check.__name__ for check in TABLES} | {"check_plugin"} == set(testing.__all__)


def test_options_that_the_plugin_rejects_are_reported_with_their_name() -> None:
    with pytest.raises(AssertionError, match="rejects the options of the check: temperature"):
        testing.check_plugin("methods", "simclr", {"temperature": -1})


def test_an_unknown_plugin_is_not_reported_as_a_broken_one() -> None:
    with pytest.raises(UserError, match="unknown method 'simclrr'; did you mean simclr"):
        testing.check_plugin("methods", "simclrr")
