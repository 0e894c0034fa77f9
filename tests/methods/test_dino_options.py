"""DINO: temperatures, the frozen last layer, drop-path, clipping, and options that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dino_helpers import batch, build
from method_helpers import COUNT, DATA, PER_EPOCH, STEPS, train
from pydantic import ValidationError

from sslcli.config.resolve import load_config
from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Progress, RunInfo
from sslcli.modules.drop_path import drop_path_rates
from sslcli.optimizers.groups import build_groups
from sslcli.plugins import load


def test_dino_only_the_last_layer_is_frozen_in_the_first_epoch() -> None:
    method = build(head={"norm_last_layer": False})
    for step in (0, PER_EPOCH - 1, PER_EPOCH):
        method.zero_grad()
        method(batch(method, step)).loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        last = [method.head.last_layer.weight, method.head.last_layer.gain]
        assert all((p.grad is None) == (step < PER_EPOCH) for p in last), step
        assert all(p.grad is not None for p in (*method.head.mlp.parameters(), *method.backbone.parameters()))


def test_dino_last_layer_is_never_frozen_for_zero_epochs() -> None:
    method = build(freeze_last_layer_epochs=0)
    method(batch(method)).loss.backward()
    method.after_backward(Progress(0, STEPS, PER_EPOCH))
    assert method.head.last_layer.weight.grad is not None


def test_dino_frozen_last_layer_gets_neither_decay_nor_momentum() -> None:
    method, adamw = build(), load("optimizers", "adamw")
    options = adamw.Options.parse({"lr": 0.1, "weight_decay": 0.4})
    optimizer = adamw.build(build_groups(method, options), options)
    last, first = method.head.last_layer.weight, method.head.mlp[0].weight
    for step in range(PER_EPOCH + 1):
        before = last.detach().clone(), first.detach().clone()
        method(batch(method, step)).loss.backward()
        method.after_backward(Progress(step, STEPS, PER_EPOCH))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.equal(last, before[0]) == (step < PER_EPOCH), step
        assert not torch.equal(first, before[1])


def temperatures(epochs: int, **options: Any) -> list[float]:
    """The teacher's temperature in each epoch, of two steps."""
    run = RunInfo(2 * epochs, 2, epochs, COUNT, 1, DATA)
    function = build(run=run, **options).schedules()["teacher_temperature"]
    steps = [function(step) for step in range(2 * epochs)]
    assert steps[::2] == steps[1::2]
    return steps[::2]


def test_dino_teacher_temperature_is_constant_by_default() -> None:
    assert temperatures(3) == [0.04, 0.04, 0.04]


def test_dino_teacher_temperature_warms_up_by_epochs() -> None:
    warm = {"teacher_temperature": 0.07, "teacher_temperature_start": 0.04}
    found = temperatures(6, teacher_temperature_warmup_epochs=4, **warm)
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert temperatures(2, teacher_temperature_warmup_epochs=1, **warm) == pytest.approx([0.04, 0.07])


def test_dino_teacher_temperature_warms_up_over_no_more_epochs_than_the_run_has() -> None:
    found = temperatures(3, teacher_temperature_warmup_epochs=30, teacher_temperature=0.07)
    assert found == pytest.approx([0.04, 0.055, 0.07])


def test_dino_teacher_temperature_is_the_one_of_the_schedule() -> None:
    method = build()
    train(method, 0, 2)
    data = batch(method, step=3)
    sharp = method(data).metrics["teacher_entropy"]
    data.schedule["teacher_temperature"] = torch.tensor(0.1)
    assert method(data).metrics["teacher_entropy"] > sharp


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"teacher_temperature": 0.2}, "teacher_temperature 0.2"),
        ({"student_temperature": 0.03}, "teacher_temperature 0.04"),
        (
            {"teacher_temperature_start": 0.3, "teacher_temperature_warmup_epochs": 2},
            "teacher_temperature_start 0.3",
        ),
    ],
)
def test_dino_teacher_temperature_above_the_students_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} is above student_temperature"):
        build(**options)


def test_dino_teacher_temperature_may_equal_the_students() -> None:
    build(teacher_temperature=0.1)
    build(teacher_temperature_start=0.3)  # without a warm-up it is never used


def test_dino_drops_paths_only_in_the_student() -> None:
    method = build(drop_path=0.1)
    assert drop_path_rates(method.backbone) == pytest.approx([0, 0.1])
    assert drop_path_rates(method.teacher) == [0, 0]
    assert method.teacher.training
    x = torch.randn(64, 3, 4, 4)
    assert torch.equal(method.teacher(x), method.teacher(x))


def test_dino_does_not_change_a_backbones_own_drop_path() -> None:
    method = build(rate=0.2, drop_path=0.1)
    assert drop_path_rates(method.backbone) == [0.2, 0.2]
    assert drop_path_rates(method.teacher) == [0, 0]


def test_dino_clips_each_parameters_gradient_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: dino\ndata: shapes\ntraining: {epochs: 12}\n")
    clip = load_config(path, []).training.clip
    assert clip is not None
    assert (clip.norm, clip.mode) == (3.0, "per_parameter")
    assert load_config(path, ["training.clip=null"]).training.clip is None
    assert load_config(path, ["training.clip.norm=1.0"]).training.clip.norm == 1.0
    assert load_config(path, ["method=byol"]).training.clip is None


def test_dino_a_config_with_a_teacher_above_the_student_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: {name: dino, teacher_temperature: 0.5}\ndata: shapes\n")
    with pytest.raises(UserError, match=r"c.yaml:1: method: .*teacher_temperature 0.5 is above student_temperature"):
        load_config(path, [])
