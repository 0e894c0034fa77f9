"""Schedules at their corners: the first step, the end of the warm-up, the last step. Values worked out by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sslcli.contracts.errors import UserError
from sslcli.contracts.optimizer import Schedule, ScheduleOptions
from sslcli.schedules.constant import Constant
from sslcli.schedules.cosine import Cosine
from sslcli.schedules.step import Milestones


def schedule(
    kind: type[Schedule], base: float = 2.0, total: int = 12, per_epoch: int = 4, **options: object
) -> Schedule:
    return kind(kind.Options.parse(options), base, total, per_epoch)


def values(made: Schedule) -> list[float]:
    return [made(step) for step in range(made.total_steps)]


def test_cosine_with_warm_up_has_the_values_of_a_table_made_by_hand() -> None:
    made = schedule(Cosine, total=10, per_epoch=4, warmup_epochs=1, final=0.1)
    # W = 4: 0, ¼, ½, ¾ of 2; then 2·(0.1 + 0.9·(1 + cos(π·k/6))/2), k = 0…5; cos 30° = 0.8660254, cos 60° = ½.
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 1.8794229, 1.55, 1.1, 0.65, 0.3205771]
    assert values(made) == pytest.approx(table, abs=1e-7)
    assert made(10) == pytest.approx(0.2)  # one step after the last: `final`


def test_cosine_without_warm_up_starts_at_its_base_and_ends_one_step_before_its_final_value() -> None:
    made = schedule(Cosine, total=6)
    assert made(0) == 2.0
    assert made(3) == pytest.approx(1.0)
    assert made(5) == pytest.approx(0.1339746)
    assert made(6) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", [Cosine, Constant, Milestones])
def test_the_first_step_of_a_warm_up_does_not_run_at_full_rate(kind: type[Schedule]) -> None:
    made = schedule(kind, warmup_epochs=1)
    assert made(0) == 0.0
    assert made(1) == pytest.approx(0.5)
    assert made(4) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", [Cosine, Constant, Milestones])
def test_epochs_are_not_steps(kind: type[Schedule]) -> None:
    in_epochs = schedule(kind, total=100, per_epoch=10, warmup_epochs=1.5)
    in_steps = schedule(kind, total=100, per_epoch=10, warmup_steps=15)
    assert values(in_epochs) == values(in_steps)
    assert in_epochs(14) < in_epochs(15) == 2.0


def test_a_warm_up_can_start_above_zero() -> None:
    made = schedule(Constant, warmup_steps=4, warmup_start=0.2)
    assert values(made)[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


def test_a_linspace_warm_up_reaches_its_base_at_its_last_step() -> None:
    made = schedule(Constant, total=7, warmup_steps=5, warmup_start=0.2, warmup="linspace")
    assert values(made) == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0])
    one = schedule(Constant, total=3, warmup_steps=1, warmup_start=0.2, warmup="linspace")
    assert values(one) == pytest.approx([0.4, 2.0, 2.0])
    none = schedule(Constant, total=3, warmup="linspace")
    assert values(none) == [2.0] * 3


# As published, in runs short enough to work out by hand: SwAV 4.8 → 0.0048 from 0.3 at a batch of 4096, DINO
# 0.0005·B/256 → 1e-6 at B = 1024, Barlow Twins and VICReg base → base/1000, solo-learn from 3e-5. cos 45° = 0.70710678.
PUBLISHED = {
    "swav": (
        {"warmup": "linspace", "warmup_start_lr": 0.3, "final_lr": 0.0048, "warmup_epochs": 1},
        (4.8, 8, 4),
        [0.3, 1.8, 3.3, 4.8, 4.8, 4.0977592, 2.4024, 0.7070408],
    ),
    "dino": (
        {"warmup": "linspace", "final_lr": 1e-6, "warmup_epochs": 1},
        (0.002, 6, 3),
        [0.0, 0.001, 0.002, 0.002, 0.00150025, 0.00050075],
    ),
    "barlow_twins": ({"final": 0.001, "warmup_epochs": 1}, (0.2, 4, 2), [0.0, 0.1, 0.2, 0.1001]),
    "solo-learn": (
        {"warmup": "linspace", "warmup_start_lr": 3e-5, "warmup_epochs": 1},
        (0.3, 6, 4),
        [3e-5, 0.10002, 0.20001, 0.3, 0.3, 0.15],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_have_the_values_of_tables_made_by_hand(name: str) -> None:
    options, (base, total, per_epoch), table = PUBLISHED[name]
    assert values(schedule(Cosine, base, total, per_epoch, **options)) == pytest.approx(table, rel=1e-6, abs=1e-12)


def test_learning_rates_stay_what_they_are_whatever_the_base() -> None:
    for base in (0.1, 3.0):
        made = schedule(Cosine, base, 12, 4, warmup_epochs=1, warmup_start_lr=0.03, final_lr=0.01)
        assert (made(0), made(4), made(12)) == pytest.approx((0.03, base, 0.01))


@pytest.mark.parametrize("key", ["warmup_start_lr", "final_lr"])
def test_a_learning_rate_above_the_base_is_refused_and_the_base_itself_is_not(key: str) -> None:
    with pytest.raises(
        UserError, match=rf"schedule\.{key}: 2\.5 is above .*optimizer\.scale_lr make, 2: lower"
    ) as raised:
        schedule(Cosine, warmup_epochs=1, **{key: 2.5})
    assert "\n" not in str(raised.value)
    schedule(Cosine, warmup_epochs=1, **{key: 2.0})


def test_constant_stays_at_its_base() -> None:
    assert values(schedule(Constant)) == [2.0] * 12


def test_milestones_are_shares_of_the_run() -> None:
    made = schedule(Milestones, total=10, milestones=[0.8, 0.55], factor=0.5, warmup_steps=1)
    # round(5.5) is 6 (to even), round(8) is 8.
    assert values(made) == pytest.approx([0.0, 2, 2, 2, 2, 2, 1, 1, 0.5, 0.5])


def test_milestones_are_by_default_a_tenth_at_60_and_80_percent() -> None:
    made = schedule(Milestones, total=200)
    assert [made(step) for step in (119, 120, 159, 160, 199)] == pytest.approx([2, 0.2, 0.2, 0.02, 0.02])


@pytest.mark.parametrize("kind", [Cosine, Constant, Milestones])
def test_a_warm_up_longer_than_the_run_is_refused_and_as_long_is_not(kind: type[Schedule]) -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs: .* 4 epochs \(16 steps\) .* run of 12 steps"):
        schedule(kind, warmup_epochs=4)
    with pytest.raises(UserError, match=r"schedule\.warmup_steps: .* 13 steps is longer") as raised:
        schedule(kind, warmup_steps=13)
    assert "\n" not in str(raised.value)
    made = schedule(kind, warmup_steps=12)
    assert made(11) == pytest.approx(2 * 11 / 12)
    made(12)


@pytest.mark.parametrize(
    ("kind", "wrong"),
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
        (Cosine, {"warmup_epoch": 1}),
    ],
)
def test_options_that_make_no_sense_are_refused(kind: type[Schedule], wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.Options.parse(wrong)


def test_every_schedule_s_options_inherit_the_contract_s() -> None:
    assert all(issubclass(kind.Options, ScheduleOptions) for kind in (Cosine, Constant, Milestones))
