"""Schedules at their corners: the first step, the end of the warm-up, the last step. Values computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sslcli.contracts.errors import UserError
from sslcli.contracts.optimizer import Schedule
from sslcli.schedules.constant import Constant
from sslcli.schedules.cosine import Cosine
from sslcli.schedules.step import Milestones

EVERY = pytest.mark.parametrize("cls", [Cosine, Constant, Milestones])


def schedule(
    cls: type[Schedule], base: float = 2.0, total: int = 12, steps_per_epoch: int = 4, **options: Any
) -> Schedule:
    return cls(cls.Options.parse(options), base, total, steps_per_epoch)


def values(made: Schedule) -> list[float]:
    return [made(step) for step in range(made.total_steps)]


LINSPACE = {"warmup": "linspace", "warmup_start": 0.2}
#: Class, options, (base, steps, steps per epoch), values; computed by hand with cos 30° = 0.8660254, cos 45° =
#: 0.70710678, cos 60° = ½. The last four are as published, in short runs: SwAV 4.8 → 0.0048 from 0.3 at a batch of
#: 4096, DINO 0.0005·B/256 → 1e-6 at B = 1024, Barlow Twins and VICReg base → base/1000, solo-learn from 3e-5.
TABLES: dict[str, tuple[type[Schedule], dict[str, Any], tuple[float, int, int], list[float]]] = {
    # W = 4: 0, ¼, ½, ¾ of 2; then 2·(0.1 + 0.9·(1 + cos(π·k/6))/2), k = 0…5
    "cosine with warm-up": (
        Cosine, {"warmup_epochs": 1, "final": 0.1}, (2.0, 10, 4),
        [0.0, 0.5, 1.0, 1.5, 2.0, 1.8794229, 1.55, 1.1, 0.65, 0.3205771],
    ),
    "cosine": (Cosine, {}, (2.0, 6, 4), [2.0, 1.8660254, 1.5, 1.0, 0.5, 0.1339746]),
    # With 3 epochs of 2 steps the value is that of each epoch's first step; a warm-up ends within the second epoch.
    "cosine by epoch": (Cosine, {"per_epoch": True}, (2.0, 6, 2), [2.0, 2.0, 1.5, 1.5, 0.5, 0.5]),
    "cosine by epoch after a warm-up": (
        Cosine, {"per_epoch": True, "warmup_steps": 3}, (2.0, 6, 2), [0.0, 2 / 3, 4 / 3, 2.0, 1.5, 1.5],
    ),
    "constant": (Constant, {}, (2.0, 4, 4), [2.0] * 4),
    "warm-up from 0.2": (Constant, {"warmup_steps": 4, "warmup_start": 0.2}, (2.0, 5, 4), [0.4, 0.8, 1.2, 1.6, 2.0]),
    "linspace": (Constant, {**LINSPACE, "warmup_steps": 5}, (2.0, 7, 4), [0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0]),
    "linspace of one step": (Constant, {**LINSPACE, "warmup_steps": 1}, (2.0, 3, 4), [0.4, 2.0, 2.0]),
    "linspace of no step": (Constant, {"warmup": "linspace"}, (2.0, 3, 4), [2.0] * 3),
    # round(5.5) is 6 (to even), round(8) is 8.
    "milestones": (
        Milestones, {"milestones": [0.8, 0.55], "factor": 0.5, "warmup_steps": 1}, (2.0, 10, 4),
        [0.0, 2, 2, 2, 2, 2, 1, 1, 0.5, 0.5],
    ),
    "swav": (
        Cosine, {"warmup": "linspace", "warmup_start_lr": 0.3, "final_lr": 0.0048, "warmup_epochs": 1}, (4.8, 8, 4),
        [0.3, 1.8, 3.3, 4.8, 4.8, 4.0977592, 2.4024, 0.7070408],
    ),
    "dino": (
        Cosine, {"warmup": "linspace", "final_lr": 1e-6, "warmup_epochs": 1}, (0.002, 6, 3),
        [0.0, 0.001, 0.002, 0.002, 0.00150025, 0.00050075],
    ),
    "barlow_twins": (Cosine, {"final": 0.001, "warmup_epochs": 1}, (0.2, 4, 2), [0.0, 0.1, 0.2, 0.1001]),
    "solo-learn": (
        Cosine, {"warmup": "linspace", "warmup_start_lr": 3e-5, "warmup_epochs": 1}, (0.3, 6, 4),
        [3e-5, 0.10002, 0.20001, 0.3, 0.3, 0.15],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_values_are_those_of_tables_computed_by_hand(name: str) -> None:
    cls, options, (base, total, steps_per_epoch), table = TABLES[name]
    assert values(schedule(cls, base, total, steps_per_epoch, **options)) == pytest.approx(table, rel=1e-6, abs=1e-7)


@EVERY
def test_warm_ups_start_at_0_and_can_be_given_in_epochs_or_steps(cls: type[Schedule]) -> None:
    in_epochs = schedule(cls, total=100, steps_per_epoch=10, warmup_epochs=1.5)
    assert values(in_epochs) == values(schedule(cls, total=100, steps_per_epoch=10, warmup_steps=15))
    assert in_epochs(0) == 0.0
    assert in_epochs(1) == pytest.approx(2 / 15)
    assert in_epochs(14) < in_epochs(15) == 2.0


def test_the_cosine_reaches_its_final_value_one_step_after_the_last() -> None:
    assert schedule(Cosine, total=10, warmup_epochs=1, final=0.1)(10) == pytest.approx(0.2)
    assert schedule(Cosine, total=6)(6) == pytest.approx(0.0)


def test_learning_rates_do_not_depend_on_the_base() -> None:
    for base in (0.1, 3.0):
        made = schedule(Cosine, base, 12, 4, warmup_epochs=1, warmup_start_lr=0.03, final_lr=0.01)
        assert (made(0), made(4), made(12)) == pytest.approx((0.03, base, 0.01))


@pytest.mark.parametrize("key", ["warmup_start_lr", "final_lr"])
def test_a_learning_rate_above_the_base_is_refused_and_the_base_itself_is_not(key: str) -> None:
    message = rf"^schedule\.{key}: 2\.5 is above the .* optimizer\.scale_lr give, 2: lower .*$"
    with pytest.raises(UserError, match=message):
        schedule(Cosine, warmup_epochs=1, **{key: 2.5})
    schedule(Cosine, warmup_epochs=1, **{key: 2.0})


def test_milestones_are_by_default_a_tenth_at_60_and_80_percent() -> None:
    made = schedule(Milestones, total=200)
    assert [made(step) for step in (119, 120, 159, 160, 199)] == pytest.approx([2, 0.2, 0.2, 0.02, 0.02])


@EVERY
def test_a_warm_up_longer_than_the_run_is_refused_and_one_as_long_is_not(cls: type[Schedule]) -> None:
    with pytest.raises(UserError, match=r"^schedule\.warmup_epochs: .* 4 epochs \(16 steps\) .* run of 12 steps.*$"):
        schedule(cls, warmup_epochs=4)
    with pytest.raises(UserError, match=r"^schedule\.warmup_steps: .* 13 steps is longer.*$"):
        schedule(cls, warmup_steps=13)
    made = schedule(cls, warmup_steps=12)
    assert made(11) == pytest.approx(2 * 11 / 12)
    made(12)


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (Cosine, {"warmup_epochs": 1, "warmup_steps": 3}),
        (Cosine, {"final": 1.5}),
        (Cosine, {"final": 0.1, "final_lr": 0.1}),
        (Cosine, {"final_lr": -0.1}),
        (Constant, {"warmup_start": 0.1, "warmup_start_lr": 0.1}),
        (Constant, {"warmup": "exponential"}),
        (Constant, {"warmup_epochs": -1}),
        (Milestones, {"milestones": [0.5, 1.0]}),
        (Milestones, {"factor": 0}),
    ],
    ids=str,
)
def test_invalid_options_are_refused(cls: type[Schedule], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.Options.parse(wrong)
